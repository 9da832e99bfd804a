//! Python's two ways to format text: `'%s' % value` and `'{}'.format(value)`.
//!
//! A conversion that Python has and this module has not is an error. Widths are limited, as padding costs memory.

pub(super) mod braces;
pub(super) mod numbers;
pub(super) mod percent;
mod spec;

//! Python's two ways to format text: `'%s' % value` and `'{}'.format(value)`.
//!
//! An unsupported conversion is an error. Widths are limited, because padding takes memory.

pub(super) mod braces;
pub(super) mod numbers;
pub(super) mod percent;
mod spec;

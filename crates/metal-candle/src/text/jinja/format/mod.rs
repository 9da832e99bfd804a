//! Python's two ways to format text: `'%s' % value` and `'{}'.format(value)`.

pub(super) mod braces;
pub(super) mod numbers;
pub(super) mod percent;
mod spec;

//! The `metal-candle` binary.
fn main() {}

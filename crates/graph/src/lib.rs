//! The lazy tensor engine of metal-candle.

pub mod io;

//! The lazy tensor engine of metal-candle.

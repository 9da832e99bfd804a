//! metal-candle.

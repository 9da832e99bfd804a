//! metal-candle.

#[cfg(feature = "graph")]
pub mod data;
#[cfg(feature = "graph")]
pub mod text;

//! metal-candle.

#[cfg(feature = "graph")]
pub mod adapters;
#[cfg(feature = "graph")]
pub mod inference;
#[cfg(feature = "graph")]
pub mod models;

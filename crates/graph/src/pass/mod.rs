//! Optimisation: a list of named passes with the verifier between them. Every pass preserves values bit for bit; none
//! touches a device.

mod cse;
mod dce;
mod fold;
mod fuse;
mod live_ranges;
mod lower;
mod pair;
mod products;
mod recompute;
mod schedule;
mod shared;
#[cfg(test)]
mod testing;

pub(crate) use self::fuse::expression_of;
use crate::error::Result;
use crate::graph::verify::verify;
use crate::graph::{Graph, GraphNode};

/// A named rewrite of a graph.
pub struct Pass {
    /// The name in logs and verifier messages.
    pub name: &'static str,
    /// The rewrite.
    pub run: fn(Graph) -> Graph,
}

/// The passes, in the order they run.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "fold",
        run: fold::run,
    },
    Pass {
        name: "cse",
        run: cse::run,
    },
    Pass {
        name: "dce",
        run: dce::run,
    },
];

/// The passes that run last, once only operations with kernels are left.
pub const FUSING: &[Pass] = &[
    Pass {
        name: "pair",
        run: pair::run,
    },
    Pass {
        name: "products",
        run: products::run,
    },
    Pass {
        name: "dce",
        run: dce::run,
    },
    Pass {
        name: "shared",
        run: shared::run,
    },
    Pass {
        name: "fuse",
        run: fuse::run,
    },
    Pass {
        name: "dce",
        run: dce::run,
    },
    Pass {
        name: "schedule",
        run: schedule::run,
    },
    Pass {
        name: "recompute",
        run: recompute::run,
    },
];

/// The passes of one optimisation in the order they ran, each with the number of nodes after it.
pub type Trail = Vec<(&'static str, usize)>;

/// Runs [`PASSES`], replaces fused operations without a kernel in the backend by their fallbacks, runs [`PASSES`] again
/// over these, and then [`FUSING`]. On backends without kernels, fused expressions are expanded again, so that every
/// backend computes the same bits with and without passes. The number of nodes after each pass is added to `trail`.
///
/// # Errors
/// [`crate::Error::Verify`] when a pass leaves a malformed graph.
pub fn optimise(graph: Graph, has_kernel: &dyn Fn(&Graph, &GraphNode) -> bool, trail: &mut Trail) -> Result<Graph> {
    verify(&graph, "recording")?;
    let graph = run_all(graph, PASSES, trail)?;
    let graph = lower(graph, PASSES, has_kernel, trail)?;
    let graph = run_all(graph, FUSING, trail)?;
    lower(graph, &[], has_kernel, trail)
}

/// Replaces fused operations by their fallbacks until each remaining one has a kernel, running `passes` after each
/// round.
///
/// # Errors
/// See [`optimise`].
pub fn lower(
    mut graph: Graph,
    passes: &[Pass],
    has_kernel: &dyn Fn(&Graph, &GraphNode) -> bool,
    trail: &mut Trail,
) -> Result<Graph> {
    while let Some(lowered) = lower::run(&graph, has_kernel)? {
        verify(&lowered, "lower")?;
        trail.push(("lower", lowered.nodes.len()));
        graph = run_all(lowered, passes, trail)?;
    }
    Ok(graph)
}

fn run_all(mut graph: Graph, passes: &[Pass], trail: &mut Trail) -> Result<Graph> {
    for pass in passes {
        let before = graph.nodes.len();
        graph = (pass.run)(graph);
        verify(&graph, pass.name)?;
        trail.push((pass.name, graph.nodes.len()));
        tracing::debug!(pass = pass.name, before, after = graph.nodes.len(), "pass");
    }
    Ok(graph)
}

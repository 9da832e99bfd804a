//! The kernel calls of a program. Some come in pieces that may run side by side; calls in pieces that need nothing of each
//! other are joined, so that threads share all their pieces and wait for each other once.

use smallvec::SmallVec;

use super::Memory;
use super::kernels::pool;
use super::kernels::tuning::matmul::PARALLEL_MACS;
use super::view::BufferId;
use crate::error::Result;

/// Steps before a step that are looked at for one to join.
const NEAR: usize = 16;

/// A whole call.
pub(super) type Call = Box<dyn Fn(&Memory) -> Result<()> + Send + Sync>;
/// A piece of a call, by its number.
pub(super) type Piece = Box<dyn Fn(&Memory, usize) + Send + Sync>;

/// A call in pieces, in any order and on any thread.
pub(super) struct Pieces {
    pub count: usize,
    /// Multiply-adds of all of them.
    pub work: usize,
    pub run: Piece,
}

/// One kernel call, or several side by side, with their operands bound.
pub(super) enum Step {
    Whole(Call),
    Pieces(SmallVec<[Pieces; 1]>),
}

impl Step {
    pub fn run(&self, memory: &Memory) -> Result<()> {
        let all = match self {
            Self::Whole(call) => return call(memory),
            Self::Pieces(all) => all,
        };
        let piece = |mut i: usize| {
            for pieces in all {
                if i < pieces.count {
                    return (pieces.run)(memory, i);
                }
                i -= pieces.count;
            }
        };
        let count = all.iter().map(|pieces| pieces.count).sum();
        let work = all.iter().map(|pieces| pieces.work).fold(0, usize::saturating_add);
        if work >= PARALLEL_MACS {
            pool::run(count, &piece);
        } else {
            (0..count).for_each(piece);
        }
        Ok(())
    }

    /// The share of each call in what the step does.
    pub fn shares(&self) -> SmallVec<[f64; 1]> {
        match self {
            Self::Whole(_) => SmallVec::from_elem(1.0, 1),
            Self::Pieces(all) => {
                let total: f64 = all.iter().map(|pieces| pieces.work as f64).sum();
                all.iter().map(|pieces| pieces.work as f64 / total.max(1.0)).collect()
            }
        }
    }
}

/// What a step touches.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub reads: SmallVec<[BufferId; 4]>,
    pub writes: SmallVec<[BufferId; 2]>,
    pub in_pieces: bool,
}

impl Access {
    /// Whether the order of the two matters.
    fn meets(&self, other: &Self) -> bool {
        let writes = |of: &Self, id: &BufferId| of.writes.contains(id);
        self.reads.iter().any(|id| writes(other, id))
            || self
                .writes
                .iter()
                .any(|id| writes(other, id) || other.reads.contains(id))
    }
}

/// The steps of each joined one, in the order in which they run: a step in pieces joins the nearest such step before it
/// that it can be moved to.
pub(super) fn joined(steps: &[Access]) -> Vec<SmallVec<[usize; 1]>> {
    let mut joined: Vec<(SmallVec<[usize; 1]>, Access)> = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let before = joined.iter_mut().rev().take(if step.in_pieces { NEAR } else { 0 });
        let mut free = before.take_while(|(_, other)| !step.meets(other));
        if let Some((members, access)) = free.find(|(_, other)| other.in_pieces) {
            members.push(index);
            access.reads.extend_from_slice(&step.reads);
            access.writes.extend_from_slice(&step.writes);
        } else {
            joined.push((SmallVec::from_elem(index, 1), step.clone()));
        }
    }
    joined.into_iter().map(|(members, _)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(in_pieces: bool, reads: &[BufferId], writes: &[BufferId]) -> Access {
        Access {
            reads: reads.into(),
            writes: writes.into(),
            in_pieces,
        }
    }

    fn members(steps: &[Access]) -> Vec<Vec<usize>> {
        joined(steps).iter().map(|members| members.to_vec()).collect()
    }

    #[test]
    fn products_of_one_input_are_joined_past_what_follows_them() {
        // Three products of buffer 0, each followed by something small.
        let steps = [1, 2, 3].map(|out| [step(true, &[0], &[out]), step(false, &[out], &[out])]);
        assert_eq!(
            members(steps.as_flattened()),
            [vec![0, 2, 4], vec![1], vec![3], vec![5]]
        );
    }

    #[test]
    fn what_needs_another_or_is_needed_stays_behind_it() {
        let cases = [
            // Reads what the first wrote; writes what the first read; writes the same.
            [step(true, &[0], &[1]), step(true, &[1], &[2])],
            [step(true, &[0], &[1]), step(true, &[3], &[0])],
            [step(true, &[0], &[1]), step(true, &[3], &[1])],
            // Not in pieces.
            [step(true, &[0], &[1]), step(false, &[0], &[2])],
        ];
        for case in cases {
            assert_eq!(members(&case), [[0], [1]]);
        }
        // The step between makes what the last one reads.
        let between = [step(true, &[0], &[1]), step(false, &[0], &[2]), step(true, &[2], &[3])];
        assert_eq!(members(&between), [[0], [1], [2]]);
    }
}

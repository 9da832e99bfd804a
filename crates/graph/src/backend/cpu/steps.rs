//! The kernel calls of a program. Some are split into pieces that may run concurrently; independent calls in pieces are
//! merged, so that threads share all their pieces and synchronise once.

use smallvec::SmallVec;

use super::Memory;
use super::kernels::pool;
use super::kernels::tuning::matmul::PARALLEL_MACS;
use super::operand::Access;
use crate::error::Result;

/// Number of preceding steps that are considered for merging.
const NEAR: usize = 16;

/// A kernel call that runs as a whole.
pub(super) type Call = Box<dyn Fn(&Memory) + Send + Sync>;
/// One piece of a call, by its index.
pub(super) type Piece = Box<dyn Fn(&Memory, usize) + Send + Sync>;
/// Checks data that a call depends on; writes nothing.
pub(super) type Check = Box<dyn Fn(&Memory) -> Result<()> + Send + Sync>;

/// A call in pieces, which run in any order on any thread.
pub(super) struct Pieces {
    pub count: usize,
    /// Multiply-adds of all pieces together.
    pub work: usize,
    pub run: Piece,
}

/// One kernel call, or several that run concurrently, with bound operands.
pub(super) enum Work {
    Whole(Call),
    Pieces(SmallVec<[Pieces; 1]>),
}

/// A kernel call that cannot fail once its check, if any, has passed.
pub(super) struct Step {
    pub check: Option<Check>,
    pub work: Work,
}

impl Step {
    /// Checks, then runs. A failed step has written nothing.
    pub fn run(&self, memory: &Memory) -> Result<()> {
        if let Some(check) = &self.check {
            check(memory)?;
        }
        self.work.run(memory);
        Ok(())
    }
}

impl Work {
    fn run(&self, memory: &Memory) {
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
    }

    /// The share of each call in the work of the step.
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

/// Merges steps: one in pieces joins the nearest preceding step in pieces that it can be moved to. Returns the steps of
/// each merged one, in the order in which they run. The input is each step's access, and whether it is in pieces.
pub(super) fn joined<'a>(steps: impl IntoIterator<Item = (&'a Access, bool)>) -> Vec<SmallVec<[usize; 1]>> {
    let mut joined: Vec<(SmallVec<[usize; 1]>, Access, bool)> = Vec::new();
    for (index, (step, in_pieces)) in steps.into_iter().enumerate() {
        let before = joined.iter_mut().rev().take(if in_pieces { NEAR } else { 0 });
        let mut free = before.take_while(|(_, other, _)| !step.meets(other));
        if let Some((members, access, _)) = free.find(|(_, _, in_pieces)| *in_pieces) {
            members.push(index);
            access.join(step);
        } else {
            joined.push((SmallVec::from_elem(index, 1), step.clone(), in_pieces));
        }
    }
    joined.into_iter().map(|(members, ..)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::super::view::BufferId;
    use super::*;

    fn step(in_pieces: bool, reads: &[BufferId], writes: &[BufferId]) -> (Access, bool) {
        let access = Access {
            reads: reads.into(),
            writes: writes.into(),
        };
        (access, in_pieces)
    }

    fn members(steps: &[(Access, bool)]) -> Vec<Vec<usize>> {
        let steps = steps.iter().map(|(access, in_pieces)| (access, *in_pieces));
        joined(steps).iter().map(|members| members.to_vec()).collect()
    }

    #[test]
    fn independent_products_are_merged_past_other_steps() {
        // Three products with buffer 0, each followed by a small step.
        let steps = [1, 2, 3].map(|out| [step(true, &[0], &[out]), step(false, &[out], &[out])]);
        assert_eq!(
            members(steps.as_flattened()),
            [vec![0, 2, 4], vec![1], vec![3], vec![5]]
        );
    }

    #[test]
    fn dependent_steps_are_not_merged() {
        let cases = [
            // Reads what the first wrote; writes what the first read; writes the same buffer.
            [step(true, &[0], &[1]), step(true, &[1], &[2])],
            [step(true, &[0], &[1]), step(true, &[3], &[0])],
            [step(true, &[0], &[1]), step(true, &[3], &[1])],
            // Not in pieces.
            [step(true, &[0], &[1]), step(false, &[0], &[2])],
        ];
        for case in cases {
            assert_eq!(members(&case), [[0], [1]]);
        }
        // The step in between writes what the last one reads.
        let between = [step(true, &[0], &[1]), step(false, &[0], &[2]), step(true, &[2], &[3])];
        assert_eq!(members(&between), [[0], [1], [2]]);
    }
}

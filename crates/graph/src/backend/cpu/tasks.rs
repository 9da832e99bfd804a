//! Finds steps of a program that may run concurrently. Independent results that are evaluated together are groups of
//! steps that share only inputs; if no step is large enough to be spread over threads itself, whole groups are. Decided
//! by sizes alone.

use std::ops::Range;

use super::kernels::tuning::programs::{LARGE_STEP, TASKS, WORTH_THREADS};
use super::view::BufferId;

/// The buffers and the cost of one step.
#[derive(Debug, Clone)]
pub(super) struct StepCost<'a> {
    /// The buffers that the step touches, of those that some step writes.
    pub touches: &'a [BufferId],
    /// Approximate element operations.
    pub work: f64,
}

/// Tasks that touch disjoint buffers, and an order of the steps in which each task is one range.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tasks {
    /// The step at each position of the order.
    pub order: Vec<usize>,
    /// The positions of each task; a single task if there is nothing to gain.
    pub ranges: Vec<Range<usize>>,
}

/// Splits a program whose steps touch `buffers` buffers.
pub(super) fn tasks(steps: &[StepCost<'_>], buffers: usize) -> Tasks {
    let total: f64 = steps.iter().map(|step| step.work).sum();
    if total < WORTH_THREADS || steps.iter().any(|step| step.work >= LARGE_STEP) {
        return one(steps.len());
    }
    let groups = groups(steps, buffers);
    let Some(count) = groups.iter().max().map(|last| last + 1).filter(|&count| count > 1) else {
        return one(steps.len());
    };
    let mut work = vec![0.0; count];
    for (step, &group) in steps.iter().zip(&groups) {
        work[group] += step.work;
    }
    let task_of = bundled(&work, total / TASKS);
    let mut order: Vec<usize> = (0..steps.len()).collect();
    // Stable: within a task, steps keep their order.
    order.sort_by_key(|&step| task_of[groups[step]]);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (place, &step) in order.iter().enumerate() {
        match ranges.get_mut(task_of[groups[step]]) {
            Some(range) => range.end = place + 1,
            None => ranges.push(place..place + 1),
        }
    }
    Tasks { order, ranges }
}

/// A single task.
fn one(steps: usize) -> Tasks {
    Tasks {
        order: (0..steps).collect(),
        ranges: std::iter::once(0..steps).collect(),
    }
}

/// The group of each step, numbered by first step: steps that touch a common buffer are in one group.
fn groups(steps: &[StepCost<'_>], buffers: usize) -> Vec<usize> {
    let mut parents: Vec<usize> = (0..steps.len()).collect();
    let mut toucher = vec![None; buffers];
    for (step, cost) in steps.iter().enumerate() {
        for &buffer in cost.touches {
            let first = *toucher[buffer].get_or_insert(step);
            let (a, b) = (root(&mut parents, first), root(&mut parents, step));
            parents[a.max(b)] = a.min(b);
        }
    }
    let mut number = vec![None; steps.len()];
    let mut next = 0;
    (0..steps.len())
        .map(|step| {
            *number[root(&mut parents, step)].get_or_insert_with(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}

/// The representative of a step's group (union-find with path halving).
fn root(parents: &mut [usize], mut step: usize) -> usize {
    while parents[step] != step {
        parents[step] = parents[parents[step]];
        step = parents[step];
    }
    step
}

/// The task of each group: consecutive groups are bundled until they have `enough` work.
fn bundled(work: &[f64], enough: f64) -> Vec<usize> {
    let (mut task, mut gathered) = (0, 0.0);
    work.iter()
        .map(|work| {
            if gathered >= enough {
                (task, gathered) = (task + 1, 0.0);
            }
            gathered += work;
            task
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(steps: &[(&[BufferId], f64)]) -> Tasks {
        let steps: Vec<StepCost<'_>> = steps
            .iter()
            .map(|&(touches, work)| StepCost { touches, work })
            .collect();
        tasks(&steps, 8)
    }

    #[test]
    fn conflicting_steps_stay_together_in_order() {
        // Two interleaved chains, and a step that is independent of both.
        let work = WORTH_THREADS / 2.0;
        let found = cut(&[
            (&[0], work),
            (&[1], work),
            (&[0, 2], work),
            (&[1, 3], work),
            (&[4], work),
        ]);
        let expected = Tasks {
            order: vec![0, 2, 1, 3, 4],
            ranges: vec![0..2, 2..4, 4..5],
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn one_task_for_conflicting_large_or_tiny_steps() {
        let cases: [[(&[BufferId], f64); 2]; 3] = [
            [(&[0, 1], WORTH_THREADS), (&[1, 2], WORTH_THREADS)],
            [(&[0], LARGE_STEP), (&[1], WORTH_THREADS)],
            [(&[0], 10.0), (&[1], 10.0)],
        ];
        for case in cases {
            assert_eq!(cut(&case), one(2));
        }
        assert_eq!(cut(&[]), one(0));
    }

    #[test]
    fn many_small_groups_are_few_tasks() {
        let steps: Vec<([BufferId; 1], f64)> = (0..1000).map(|i| ([i], 1000.0)).collect();
        let steps: Vec<StepCost<'_>> = steps
            .iter()
            .map(|(touches, work)| StepCost { touches, work: *work })
            .collect();
        let found = tasks(&steps, 1000);
        assert!((16..=33).contains(&found.ranges.len()), "{} tasks", found.ranges.len());
        assert!(found.ranges.windows(2).all(|two| two[0].end == two[1].start));
        assert_eq!(found.order, (0..1000).collect::<Vec<_>>());
    }
}

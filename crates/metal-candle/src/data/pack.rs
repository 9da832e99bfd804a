//! Packing: the length of rows, and which examples share one. Uses only lengths, no tokens.

use std::cmp::Reverse;

/// Approximate number of examples that determine the row length; a larger data set is sampled.
const SAMPLE: usize = 4096;
/// Row length at which attention doubles the cost of a token (for a small model, where its share is largest).
const ATTENTION: f64 = 512.0;
/// Row length beyond which attention costs no more: kernels skip blocks of keys that belong to other examples.
const BLOCK: usize = 320;

/// The shape of all packed batches of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackedShape {
    /// Rows per batch.
    pub rows: usize,
    /// Tokens per row.
    pub length: usize,
    /// Rows per epoch that contain examples.
    pub filled: usize,
}

impl PackedShape {
    /// Chooses the row length, between the longest example and `max_length`, that minimises the computation of an
    /// epoch, including padding, empty rows of incomplete batches, and the attention of long rows. A batch holds as
    /// many tokens as `rows` rows of `max_length`, in more rows if these are shorter, and batches are as even as
    /// possible.
    pub fn choose(lengths: &[usize], rows: usize, max_length: usize) -> Self {
        let tokens = rows.saturating_mul(max_length);
        let longest = lengths.iter().copied().max().unwrap_or(1).min(max_length);
        let sample: Vec<usize> = lengths
            .iter()
            .copied()
            .step_by(lengths.len().div_ceil(SAMPLE).max(1))
            .collect();
        let longer = |length: &usize| Some((length + length / 8 + 1).next_multiple_of(8));
        let tried = std::iter::successors(Some(longest.next_multiple_of(8)), longer);
        let tried = tried.take_while(|length| *length < max_length).chain([max_length]);
        let cost = |length: usize| {
            let needed = (pack(&sample, length).len() * lengths.len()).div_ceil(sample.len().max(1));
            let (batches, rows) = even(needed, tokens / length);
            (batches * rows * length) as f64 * (1.0 + length.min(BLOCK) as f64 / ATTENTION)
        };
        let costs = tried.map(|length| (length, cost(length)));
        let length = costs
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map_or(max_length, |(length, _)| length);
        let filled = pack(lengths, length).len();
        let (_, rows) = even(filled, tokens / length);
        Self { rows, length, filled }
    }
}

/// Splits `rows` rows into batches of at most `most`: the number of batches, and the rows of each.
fn even(rows: usize, most: usize) -> (usize, usize) {
    let batches = rows.max(1).div_ceil(most.max(1));
    (batches, rows.max(1).div_ceil(batches))
}

/// The indices of the examples in each row: first fit decreasing. The number of rows does not depend on the order of
/// the examples; the order of rows, and which examples of equal length share one, does.
pub(super) fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| Reverse(lengths[*index]));
    let sorted: Vec<usize> = order.iter().map(|index| lengths[*index]).collect();
    let examples = |row: Vec<usize>| {
        let mut row: Vec<usize> = row.into_iter().map(|place| order[place]).collect();
        row.sort_unstable();
        row
    };
    let mut rows: Vec<Vec<usize>> = first_fit(&sorted, capacity).into_iter().map(examples).collect();
    rows.sort_unstable();
    rows
}

/// First fit: each length, in order, goes to the first row with enough space, else to a new row. Returns the indices of
/// each row's items. A length over `capacity` gets a row of its own.
///
/// Rows are the leaves of a binary tree that stores the maximum free space under each node, so `n` items take `n log n`
/// steps.
fn first_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let leaves = lengths.len().next_power_of_two();
    let mut room = vec![capacity; 2 * leaves];
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for (item, length) in lengths.iter().enumerate() {
        let mut node = 1;
        let length = (*length).min(capacity); // the first untouched row always has room
        while node < leaves {
            node = if room[2 * node] >= length {
                2 * node
            } else {
                2 * node + 1
            };
        }
        let row = node - leaves;
        if row == rows.len() {
            rows.push(Vec::new());
        }
        rows[row].push(item);
        room[node] -= length;
        while node > 1 {
            node /= 2;
            room[node] = room[2 * node].max(room[2 * node + 1]);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// First fit by linear search.
    fn plain(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
        let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
        for (item, length) in lengths.iter().enumerate() {
            match rows.iter_mut().find(|(used, _)| used + length <= capacity) {
                Some((used, items)) => {
                    *used += length;
                    items.push(item);
                }
                None => rows.push((*length, vec![item])),
            }
        }
        rows.into_iter().map(|(_, items)| items).collect()
    }

    #[test]
    fn fills_the_first_row_with_room() {
        assert_eq!(first_fit(&[6, 5, 4, 3, 2], 10), [vec![0, 2], vec![1, 3, 4]]);
        assert_eq!(first_fit(&[], 10), Vec::<Vec<usize>>::new());
    }

    fn chosen(lengths: &[usize], rows: usize, max_length: usize) -> (usize, usize) {
        let PackedShape { rows, length, .. } = PackedShape::choose(lengths, rows, max_length);
        (rows, length)
    }

    #[test]
    fn rows_are_as_long_as_the_data_needs() {
        // 55 examples of 20 tokens: 28 rows of 40, two examples each, not eight rows of 1024.
        assert_eq!(chosen(&[20; 55], 8, 1024), (28, 40));
        assert_eq!(chosen(&[3, 4, 2], 1, 2048), (2, 8));
        // Much short data: short rows, and batches of as many tokens as before.
        let (rows, length) = chosen(&vec![20; 4000], 8, 1024);
        assert!(
            length <= 128 && rows * length <= 8192 && rows * length > 7000,
            "{rows} rows of {length}"
        );
        // The longest example fits.
        assert_eq!(chosen(&[1000, 20, 20], 8, 1024), (2, 1000));
        assert_eq!(chosen(&[13], 8, 13), (1, 13));
        assert_eq!(chosen(&[5, 13], 8, 14), (2, 14));
    }

    proptest! {
        /// With rows of a certain length, little more is computed than the tokens themselves; and never much more than
        /// with rows of `max_length`, whose attention costs more.
        #[test]
        fn little_is_padding(lengths in prop::collection::vec(1usize..=64, 1..300), rows in 1usize..10) {
            let (chosen_rows, length) = chosen(&lengths, rows, 1024);
            prop_assert!(chosen_rows * length <= rows * 1024 && length >= lengths.iter().copied().max().unwrap());
            let computed = |rows: usize, length: usize| pack(&lengths, length).len().div_ceil(rows) * rows * length;
            let (now, before) = (computed(chosen_rows, length), computed(rows.min(lengths.len()), 1024));
            prop_assert!(8 * now <= 13 * before, "{now}, was {before}");
            let tokens: usize = lengths.iter().sum();
            prop_assert!(tokens < 1024 || 3 * now <= 5 * tokens, "{now} for {tokens}");
        }

        /// Every example is placed, and another order needs as many rows.
        #[test]
        fn all_fit_in_as_many_rows(lengths in prop::collection::vec(1usize..=20, 0..60), capacity in 20usize..40) {
            let rows = pack(&lengths, capacity);
            let mut all = rows.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            prop_assert!(rows.iter().all(|row| row.iter().map(|i| lengths[*i]).sum::<usize>() <= capacity));
            let backwards: Vec<usize> = lengths.iter().rev().copied().collect();
            prop_assert_eq!(pack(&backwards, capacity).len(), rows.len());
        }

        #[test]
        fn agrees_with_linear_search(lengths in prop::collection::vec(1usize..=20, 0..60), capacity in 20usize..40) {
            prop_assert_eq!(first_fit(&lengths, capacity), plain(&lengths, capacity));
        }
    }
}

//! Packing: which examples share a row. Only lengths are looked at here; no token.

/// First fit: each length, in its order, goes to the first row with room for it, else to a new row. Returns the
/// indices of each row's items. A length over `capacity` gets a row of its own.
///
/// Rows are the leaves of a binary tree that knows the most room under each node, so `n` items take `n log n` steps.
pub(super) fn first_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
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

    /// First fit as one would write it down.
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

    proptest! {
        #[test]
        fn agrees_with_the_plain_way(lengths in prop::collection::vec(1usize..=20, 0..60), capacity in 20usize..40) {
            prop_assert_eq!(first_fit(&lengths, capacity), plain(&lengths, capacity));
        }
    }
}

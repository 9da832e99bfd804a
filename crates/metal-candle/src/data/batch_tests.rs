//! Batches: shapes, targets, packing, resuming, each example once per epoch.

use proptest::prelude::*;

use super::*;

fn example(tokens: &[u32], supervised: &[bool]) -> Example {
    Example {
        tokens: tokens.to_vec(),
        supervised: supervised.to_vec(),
    }
}

/// Examples of these lengths, with distinct tokens and every second one supervised.
fn dataset(lengths: &[usize]) -> Dataset {
    let example = |(index, length): (usize, &usize)| Example {
        tokens: (0..*length)
            .map(|position| (100 * index + position + 1) as u32)
            .collect(),
        supervised: (0..*length).map(|position| position % 2 == 1).collect(),
    };
    Dataset::from_examples(lengths.iter().enumerate().map(example).collect()).unwrap()
}

fn options(rows: usize, max_length: usize, layout: Layout) -> BatchOptions {
    BatchOptions {
        rows,
        max_length,
        layout,
        shuffle: None,
        pad_token: 9999,
    }
}

#[test]
fn a_padded_batch_is_laid_out_row_by_row() {
    let dataset = Dataset::from_examples(vec![
        example(&[5, 6, 7], &[false, true, true]),
        example(&[8, 9], &[false, false]),
        example(&[1, 2], &[false, true]),
    ]);
    let batches = Batches::new(dataset.unwrap(), options(2, 4, Layout::Fixed)).unwrap();
    let got: Vec<Batch> = batches.epoch(0).map(|(_, batch)| batch).collect();
    let n = IGNORED;
    let first = Batch {
        rows: 2,
        length: 4,
        tokens: vec![5, 6, 7, 9999, 8, 9, 9999, 9999],
        targets: vec![6, 7, n, n, n, n, n, n],
        segments: vec![1, 1, 1, 0, 1, 1, 0, 0],
        positions: vec![0, 1, 2, 0, 0, 1, 0, 0],
    };
    assert_eq!(got[0], first);
    assert_eq!(got[0].supervised_tokens(), 2);
    // The last batch has the same shape; its second row is empty.
    assert_eq!((got.len(), got[1].rows, got[1].length), (2, 2, 4));
    assert_eq!(got[1].segments, [1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(got[1].targets, [2, n, n, n, n, n, n, n]);
}

#[test]
fn a_packed_row_keeps_examples_apart() {
    let examples = vec![
        example(&[5, 6, 7], &[false, true, true]),
        example(&[1, 2, 3, 4], &[true; 4]),
        example(&[8, 9], &[true, true]),
    ];
    let batches = Batches::new(Dataset::from_examples(examples).unwrap(), options(1, 6, Layout::Packed)).unwrap();
    let got: Vec<Batch> = batches.epoch(0).map(|(_, batch)| batch).collect();
    let n = IGNORED;
    assert_eq!(got[0].tokens, [5, 6, 7, 9999, 9999, 9999]);
    let second = Batch {
        rows: 1,
        length: 6,
        tokens: vec![1, 2, 3, 4, 8, 9],
        targets: vec![2, 3, 4, n, 9, n],
        segments: vec![1, 1, 1, 1, 2, 2],
        positions: vec![0, 1, 2, 3, 0, 1],
    };
    assert_eq!(got[1], second);
}

#[test]
fn buckets_are_few_and_close() {
    let cases = [
        (1, 8),
        (8, 8),
        (9, 16),
        (17, 24),
        (25, 32),
        (33, 48),
        (49, 64),
        (65, 96),
        (97, 128),
        (129, 192),
    ];
    for (longest, expected) in cases {
        assert_eq!(bucket_length(longest, 4096), expected);
    }
    assert_eq!(bucket_length(70, 80), 80);
    assert_eq!(bucket_length(5, 4), 4);
    for longest in 9..5000 {
        let length = bucket_length(longest, usize::MAX);
        assert!(length >= longest && length < 2 * longest, "{longest} {length}");
    }
}

#[test]
fn bad_settings_are_errors() {
    let cases = [
        (
            dataset(&[3]),
            options(0, 8, Layout::Padded),
            "batch size: must be at least 1, got 0",
        ),
        (
            dataset(&[3, 9]),
            options(1, 8, Layout::Packed),
            "max_length: 8, but an example has 9 tokens",
        ),
        (
            dataset(&[]),
            options(1, 8, Layout::Padded),
            "examples: there are none to make batches of",
        ),
        (
            dataset(&[0]),
            options(1, 8, Layout::Padded),
            "examples: an example has no tokens",
        ),
    ];
    for (dataset, options, expected) in cases {
        assert_eq!(Batches::new(dataset, options).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_small_packed_data_set_has_a_short_row() {
    let batches = Batches::new(dataset(&[3, 4, 2]), options(1, 2048, Layout::Packed)).unwrap();
    let shapes: Vec<_> = batches.epoch(0).map(|(_, batch)| (batch.rows, batch.length)).collect();
    assert_eq!(shapes, [(2, 8)]);
}

/// Short examples waste neither rows of the maximum length nor batches of such rows, in any epoch.
#[test]
fn packed_batches_of_short_data_are_small() {
    let lengths: Vec<usize> = (0..60).map(|i| 12 + i % 17).collect();
    let tokens: usize = lengths.iter().sum();
    let packed = BatchOptions {
        shuffle: Some(3),
        ..options(8, 1024, Layout::Packed)
    };
    let batches = Batches::new(dataset(&lengths), packed).unwrap();
    for epoch in 0..20 {
        let computed: usize = batches.epoch(epoch).map(|(_, batch)| batch.tokens.len()).sum();
        assert!(
            2 * computed <= 3 * tokens,
            "epoch {epoch}: {computed} places for {tokens} tokens"
        );
    }
}

/// The examples of a batch according to its segments: tokens with their targets.
fn unpack(batch: &Batch) -> Vec<Vec<(u32, i64)>> {
    let mut found = Vec::new();
    for row in 0..batch.rows {
        let mut last = 0;
        for at in row * batch.length..(row + 1) * batch.length {
            let segment = batch.segments[at];
            if segment == 0 {
                assert_eq!(
                    (batch.tokens[at], batch.targets[at], batch.positions[at]),
                    (9999, IGNORED, 0)
                );
                last = u32::MAX; // nothing follows padding
                continue;
            }
            if segment != last {
                assert_eq!(segment, last.wrapping_add(1));
                found.push(Vec::new());
                last = segment;
            }
            let example: &mut Vec<(u32, i64)> = found.last_mut().unwrap();
            assert_eq!(batch.positions[at] as usize, example.len());
            example.push((batch.tokens[at], batch.targets[at]));
        }
    }
    found
}

proptest! {
    /// In every layout, every epoch contains every example once, with its own targets.
    #[test]
    fn every_example_is_used_once(
        lengths in prop::collection::vec(1usize..30, 1..40),
        rows in 1usize..5,
        layout in prop::sample::select(vec![Layout::Padded, Layout::Fixed, Layout::Packed]),
        seed: Option<u64>,
        epoch in 0u64..5,
    ) {
        let dataset = dataset(&lengths);
        let mut expected: Vec<Vec<(u32, i64)>> = dataset.examples().iter().map(|example| {
            let target = |at: usize| match example.supervised.get(at + 1) {
                Some(true) => i64::from(example.tokens[at + 1]),
                _ => IGNORED,
            };
            (0..example.tokens.len()).map(|at| (example.tokens[at], target(at))).collect()
        }).collect();
        let batches = Batches::new(dataset, BatchOptions { shuffle: seed, ..options(rows, 40, layout) }).unwrap();
        let all: Vec<(Cursor, Batch)> = batches.epoch(epoch).collect();
        prop_assert_eq!(all.len(), batches.batches_in(epoch));
        let mut found: Vec<_> = all.iter().flat_map(|(_, batch)| unpack(batch)).collect();
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
        for (index, (cursor, batch)) in all.iter().enumerate() {
            prop_assert_eq!(*cursor, Cursor { epoch, index });
            // Packed batches have no more rows than their examples fill.
            let rows = if layout == Layout::Packed { all[0].1.rows } else { rows.min(lengths.len()) };
            prop_assert!(rows <= lengths.len());
            prop_assert_eq!((batch.rows, batch.tokens.len()), (rows, rows * batch.length));
            prop_assert!(layout == Layout::Padded || batch.length == all[0].1.length);
        }
    }

    /// From any position on, the batches are those of an uninterrupted run.
    #[test]
    fn resuming_repeats_the_run(
        lengths in prop::collection::vec(1usize..30, 1..20),
        rows in 1usize..4,
        layout in prop::sample::select(vec![Layout::Padded, Layout::Packed]),
        seed: u64,
        stop in 0usize..30,
    ) {
        let batches =
            Batches::new(dataset(&lengths), BatchOptions { shuffle: Some(seed), ..options(rows, 40, layout) }).unwrap();
        let mut run = batches.iter_from(Cursor::default());
        run.by_ref().take(stop).for_each(drop);
        let resumed = batches.iter_from(run.cursor());
        for (a, b) in run.zip(resumed).take(20) {
            prop_assert_eq!(a, b);
        }
    }
}

#[test]
fn a_batch_has_no_more_rows_than_there_are_examples() {
    // Packed, one row holds all of them.
    for (layout, rows) in [(Layout::Padded, 3), (Layout::Fixed, 3), (Layout::Packed, 1)] {
        let batches = Batches::new(dataset(&[4, 5, 6]), options(usize::MAX / 2, 40, layout)).unwrap();
        assert_eq!(
            (batches.batches_in(0), batches.epoch(0).next().unwrap().1.rows),
            (1, rows)
        );
    }
}

#[test]
fn epochs_have_orders_of_their_own() {
    let batches = |shuffle| {
        Batches::new(
            dataset(&[4; 20]),
            BatchOptions {
                shuffle,
                ..options(20, 8, Layout::Fixed)
            },
        )
        .unwrap()
    };
    let tokens = |batches: &Batches, epoch| batches.epoch(epoch).next().unwrap().1.tokens;
    let (plain, one, two) = (batches(None), batches(Some(1)), batches(Some(2)));
    assert_eq!(tokens(&plain, 0), tokens(&plain, 1));
    assert_eq!(tokens(&one, 3), tokens(&one, 3));
    assert_ne!(tokens(&one, 0), tokens(&one, 1));
    assert_ne!(tokens(&one, 0), tokens(&two, 0));
}

//! Batches: examples in a seeded order, padded or packed into rows of equal length.
//!
//! Each epoch uses every example exactly once, in a new order; any batch can be recreated from its [`Cursor`], so a
//! resumed run sees the same batches as an uninterrupted one. There are few distinct shapes, because each shape needs
//! its own compiled plan.

use super::pack::{PackedShape, pack};
use super::{DataError, Dataset, Example, permutation};

/// The target of a token whose successor is not trained on.
pub const IGNORED: i64 = -100;

/// Rows of tokens in flat row-major vectors: index `row * length + position`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Tokens of each row.
    pub length: usize,
    /// Token ids `(rows, length)`, with the padding token after the examples.
    pub tokens: Vec<u32>,
    /// The next token at each position `(rows, length)`, or [`IGNORED`].
    pub targets: Vec<i64>,
    /// Number of the example within its row at each position `(rows, length)`: 1, 2, ...; 0 for padding.
    pub segments: Vec<u32>,
    /// Position of each token in its example `(rows, length)`, from 0; 0 for padding.
    pub positions: Vec<u32>,
}

impl Batch {
    /// Concatenates the examples of each row, and pads to `rows` rows of `length` tokens.
    fn new(rows: usize, length: usize, pad: u32, content: &[Vec<&Example>]) -> Self {
        let size = rows * length;
        let mut batch = Self {
            rows,
            length,
            tokens: vec![pad; size],
            targets: vec![IGNORED; size],
            segments: vec![0; size],
            positions: vec![0; size],
        };
        for (row, examples) in content.iter().enumerate() {
            let mut at = row * length;
            for (segment, example) in (1..).zip(examples) {
                batch.write(at, segment, example);
                at += example.tokens.len();
            }
        }
        batch
    }

    fn write(&mut self, at: usize, segment: u32, example: &Example) {
        let end = at + example.tokens.len();
        self.tokens[at..end].copy_from_slice(&example.tokens);
        self.segments[at..end].fill(segment);
        for (position, slot) in (0..).zip(&mut self.positions[at..end]) {
            *slot = position;
        }
        // The last token of an example has no target: the next token in the row belongs to another example.
        for (next, slot) in (1..example.tokens.len()).zip(&mut self.targets[at..end]) {
            if example.supervised[next] {
                *slot = i64::from(example.tokens[next]);
            }
        }
    }

    /// The number of targets, by which a mean loss divides.
    #[must_use]
    pub fn supervised_tokens(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED).count()
    }
}

/// How examples are arranged in rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One example per row; each batch has the [`bucket_length`] of its longest example.
    Padded,
    /// One example per row; every row has `max_length` tokens, so that there is only one shape.
    Fixed,
    /// As many examples per row as fit, placed longest first. All batches have the same shape, chosen for the data: a
    /// batch holds at most as many tokens as `rows` rows of `max_length`, in shorter and more rows if examples are
    /// short.
    Packed,
}

/// How examples are arranged in batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Rows per batch, at least 1; a smaller data set gives smaller batches. See [`Layout::Packed`] for packed batches.
    pub rows: usize,
    /// Longest row in tokens; no example may be longer.
    pub max_length: usize,
    /// How examples are arranged in rows.
    pub layout: Layout,
    /// `None` for the order of the file, else the seed of a new order in each epoch.
    pub shuffle: Option<u64>,
    /// The padding token.
    pub pad_token: u32,
}

/// The length of a padded batch: the least of 8, 16, 24, 32, 48, 64, 96, 128, 192, ... (`8 * 2^k` and `24 * 2^k`) that
/// holds `longest`, but at most `max_length`. Two lengths per doubling give few shapes, with less than half of a row
/// padding.
#[must_use]
pub fn bucket_length(longest: usize, max_length: usize) -> usize {
    let mut length = 8;
    while length < longest.min(max_length) {
        // 8 -> 16 -> 24 -> 32 -> 48 -> 64: a power of two is followed by 1.5 times itself, except 8, which is followed
        // by 16.
        length = match length {
            8 => 16,
            power if power.is_power_of_two() => power / 2 * 3,
            half => half / 3 * 4,
        };
    }
    length.min(max_length)
}

/// A position in the sequence of batches: batch `index` of `epoch`, both from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Number of completed epochs.
    pub epoch: u64,
    /// Number of completed batches of this epoch.
    pub index: usize,
}

/// The batches of a data set, epoch after epoch.
///
/// ```
/// use metal_candle::data::{BatchOptions, Batches, Cursor, Dataset, Example, Layout};
///
/// let example = |n| Example { tokens: vec![7; n], supervised: vec![true; n] };
/// let dataset = Dataset::from_examples(vec![example(3), example(5), example(4)])?;
/// let options = BatchOptions { rows: 2, max_length: 64, layout: Layout::Padded, shuffle: Some(42), pad_token: 0 };
/// let batches = Batches::new(dataset, options)?;
/// let shapes: Vec<_> = batches.epoch(0).map(|(_, batch)| (batch.rows, batch.length)).collect();
/// assert_eq!(shapes, [(2, 8), (2, 8)]);
/// let resumed = batches.iter_from(Cursor { epoch: 0, index: 1 }).next();
/// assert_eq!(resumed, batches.epoch(0).nth(1));
/// # Ok::<(), metal_candle::data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Batches {
    dataset: Dataset,
    options: BatchOptions,
    /// Tokens per row, if all batches have the same length.
    length: Option<usize>,
    /// Rows per epoch that contain examples.
    filled: usize,
}

impl Batches {
    /// Prepares the batches of a data set.
    ///
    /// # Errors
    ///
    /// [`DataError::Option`] for an empty data set, no rows, or an example that is empty or longer than `max_length`.
    pub fn new(dataset: Dataset, mut options: BatchOptions) -> Result<Self, DataError> {
        let wrong = |name, reason| Err(DataError::Option { name, reason });
        if options.rows == 0 {
            return wrong("batch size", "must be at least 1, got 0".to_owned());
        }
        let stats = dataset.stats();
        if stats.examples == 0 {
            return wrong("examples", "there are none to make batches of".to_owned());
        }
        if dataset.examples().iter().any(|example| example.tokens.is_empty()) {
            return wrong("examples", "an example has no tokens".to_owned());
        }
        if stats.longest > options.max_length {
            let reason = format!("{}, but an example has {} tokens", options.max_length, stats.longest);
            return wrong("max_length", reason);
        }
        if options.layout != Layout::Packed {
            options.rows = options.rows.min(stats.examples);
        }
        let mut batches = Self {
            dataset,
            options,
            length: None,
            filled: stats.examples,
        };
        match batches.options.layout {
            Layout::Padded => {}
            Layout::Fixed => batches.length = Some(batches.options.max_length),
            Layout::Packed => {
                let lengths = batches.lengths(&(0..stats.examples).collect::<Vec<_>>());
                let shape = PackedShape::choose(&lengths, batches.options.rows, batches.options.max_length);
                (batches.options.rows, batches.length) = (shape.rows, Some(shape.length));
                batches.filled = shape.filled;
            }
        }
        Ok(batches)
    }

    /// The examples.
    #[must_use]
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The number of batches per epoch, the same in every epoch.
    #[must_use]
    pub fn batches_in(&self, _epoch: u64) -> usize {
        self.filled.div_ceil(self.options.rows)
    }

    /// The batches of one epoch.
    pub fn epoch(&self, epoch: u64) -> impl Iterator<Item = (Cursor, Batch)> + '_ {
        self.iter_from(Cursor { epoch, index: 0 })
            .take_while(move |(cursor, _)| cursor.epoch == epoch)
    }

    /// All batches from a position on, epoch after epoch without end, each with its own position. A position past the
    /// end of its epoch is the beginning of the next.
    #[must_use]
    pub fn iter_from(&self, cursor: Cursor) -> BatchIter<'_> {
        BatchIter {
            batches: self,
            next: cursor,
            plan: self.plan(cursor.epoch),
        }
    }

    /// The examples in the order of an epoch.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let count = self.dataset.examples().len();
        match self.options.shuffle {
            Some(seed) => permutation(count, seed, epoch),
            None => (0..count).collect(),
        }
    }

    fn lengths(&self, order: &[usize]) -> Vec<usize> {
        let length = |index: &usize| self.dataset.examples()[*index].tokens.len();
        order.iter().map(length).collect()
    }

    /// The examples of each row of an epoch.
    fn plan(&self, epoch: u64) -> Vec<Vec<usize>> {
        let order = self.order(epoch);
        match (self.options.layout, self.length) {
            (Layout::Packed, Some(length)) => {
                let rows = pack(&self.lengths(&order), length);
                rows.into_iter()
                    .map(|row| row.into_iter().map(|place| order[place]).collect())
                    .collect()
            }
            _ => order.into_iter().map(|index| vec![index]).collect(),
        }
    }

    /// One batch of planned rows; the last of an epoch is padded with empty rows, so that it has the same shape.
    fn batch(&self, plan: &[Vec<usize>]) -> Batch {
        let examples = self.dataset.examples();
        let rows: Vec<Vec<&Example>> = plan
            .iter()
            .map(|row| row.iter().map(|index| &examples[*index]).collect())
            .collect();
        let longest = rows
            .iter()
            .map(|row| row.iter().map(|example| example.tokens.len()).sum())
            .max()
            .unwrap_or(0);
        let length = self
            .length
            .unwrap_or_else(|| bucket_length(longest, self.options.max_length));
        Batch::new(self.options.rows, length, self.options.pad_token, &rows)
    }
}

/// Iterates over the batches from a position on, without end.
#[derive(Clone, Debug)]
pub struct BatchIter<'a> {
    batches: &'a Batches,
    next: Cursor,
    plan: Vec<Vec<usize>>,
}

impl BatchIter<'_> {
    /// The position of the next batch, to be saved for resuming.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.next
    }
}

impl Iterator for BatchIter<'_> {
    type Item = (Cursor, Batch);

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.batches.options.rows;
        if self.next.index >= self.plan.len().div_ceil(rows) {
            self.next = Cursor {
                epoch: self.next.epoch + 1,
                index: 0,
            };
            self.plan = self.batches.plan(self.next.epoch);
        }
        let (cursor, start) = (self.next, self.next.index * rows);
        self.next.index += 1;
        let end = self.plan.len().min(start + rows);
        Some((cursor, self.batches.batch(&self.plan[start..end])))
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;

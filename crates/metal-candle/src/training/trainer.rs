//! The training loop of an adapter: batches in a seeded order, optimizer steps, evaluation in between, and an observer
//! that is notified of each and may end the run. It writes no file and prints nothing.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::{DType, Device};
use metal_candle_graph::{AdamWOptions, CrossEntropyOptions, Explanation, LazyTensor, compile};

use super::TrainingError;
use super::stepper::{StepOutcome, Stepper};
use super::trainer_config::TrainerConfig;
use crate::adapters::AdapterParameters;
use crate::data::{Batch, BatchOptions, Batches, Cursor, Dataset, Layout};
use crate::error::{Error, Result};
use crate::models::CausalLm;
use crate::nn::Pass;

/// A notification to the observer of a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An optimizer step was completed.
    Step(StepReport),
    /// A batch of the validation set was evaluated. Breaking here ends the run without this evaluation.
    Evaluating {
        /// Completed optimizer steps.
        step: usize,
        /// Evaluated batches.
        batches: usize,
        /// Batches of the validation set.
        total_batches: usize,
    },
    /// The validation set was evaluated.
    Evaluation {
        /// Completed optimizer steps.
        step: usize,
        /// Mean loss over its supervised tokens.
        loss: f64,
        /// Number of supervised tokens.
        supervised_tokens: usize,
    },
}

/// One optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Completed epochs, as a fraction.
    pub epoch: f64,
    /// Mean loss over the supervised tokens of the step.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Tokens without padding.
    pub tokens: usize,
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// Seconds the step took.
    pub seconds: f64,
    /// Whether the step was skipped because loss or norm was non-finite.
    pub skipped: bool,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Completed optimizer steps.
    pub steps: usize,
    /// Seconds of the run, evaluations included.
    pub seconds: f64,
    /// Tokens without padding.
    pub tokens: usize,
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Steps skipped because loss or norm was non-finite.
    pub skipped_steps: usize,
    /// Loss of the last evaluation.
    pub evaluation_loss: Option<f64>,
    /// Whether the observer ended the run.
    pub stopped_early: bool,
}

/// Trains the adapter of a model.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use candle_core::{DType, Device};
/// use metal_candle::adapters::{self, AdapterConfig};
/// use metal_candle::data::{Dataset, DatasetOptions};
/// use metal_candle::training::{Event, Trainer, TrainerConfig};
///
/// # fn main() -> Result<(), metal_candle::Error> {
/// let mut loaded = metal_candle::models::load("path/to/model", DType::F32, &Device::Cpu)?;
/// let parameters = adapters::apply(&mut *loaded.model, &AdapterConfig::default(), 42)?;
/// let data = Dataset::from_jsonl("data.jsonl", &loaded.tokenizer, &DatasetOptions::default())?;
/// let mut trainer = Trainer::new(&*loaded.model, parameters, data, None, TrainerConfig::default(), 0)?;
/// trainer.run(&mut |event| {
///     if let Event::Step(step) = event {
///         println!("{} {:.3}", step.step, step.loss);
///     }
///     ControlFlow::Continue(())
/// })?;
/// trainer.parameters()?.save("adapter".as_ref())?;
/// # Ok(())
/// # }
/// ```
pub struct Trainer<'m> {
    adapter: AdapterParameters,
    stepper: Stepper<'m>,
    evaluator: Box<dyn Fn(Vec<LazyTensor>) -> metal_candle_graph::Result<Vec<LazyTensor>> + 'm>,
    train: Batches,
    validation: Option<Batches>,
    config: TrainerConfig,
    device: Device,
    total_steps: usize,
    skipped_in_a_row: usize,
    last_outcome: Option<StepOutcome>,
}

impl<'m> Trainer<'m> {
    /// Prepares a run. Rows are padded with `pad_token`, which other tokens never see.
    ///
    /// # Errors
    /// A setting out of range, or a data set that gives no batches.
    pub fn new(
        model: &'m dyn CausalLm,
        adapter: AdapterParameters,
        train: Dataset,
        validation: Option<Dataset>,
        config: TrainerConfig,
        pad_token: u32,
    ) -> Result<Self> {
        config.validate()?;
        check_examples(model, [Some(&train), validation.as_ref()])?;
        let layout = if config.packing { Layout::Packed } else { Layout::Padded };
        let options = |shuffle| BatchOptions {
            rows: config.per_device_train_batch_size,
            max_length: config.max_length,
            layout,
            shuffle,
            pad_token,
        };
        let train = Batches::new(train, options(Some(config.seed)))?;
        let validation = validation.map(|set| Batches::new(set, options(None))).transpose()?;
        let (packed, dropout) = (config.packing, adapter.config().lora_dropout > 0.0);
        let optimizer = AdamWOptions {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
            weight_decay: config.weight_decay,
        };
        let loss = move |parameters: &[LazyTensor], batch: &[LazyTensor]| {
            summed_loss(model, parameters, batch, packed, dropout)
        };
        let stepper = Stepper::new(adapter.tensors().to_vec(), optimizer, loss)?;
        let count = adapter.tensors().len();
        let evaluator = compile(move |arguments: &[LazyTensor]| {
            let (parameters, batch) = arguments.split_at(count);
            Ok(vec![summed_loss(model, parameters, batch, packed, false)?])
        });
        let total_steps = total_steps(&train, &config);
        let device = model.head().device().clone();
        let evaluator = Box::new(move |arguments| Ok(evaluator.call(arguments)?));
        Ok(Self {
            adapter,
            stepper,
            evaluator,
            train,
            validation,
            config,
            device,
            total_steps,
            skipped_in_a_row: 0,
            last_outcome: None,
        })
    }

    /// Optimizer steps of the whole run.
    #[must_use]
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// Batches of the first epoch; with packing, other epochs may have slightly more or fewer.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.train.batches_in(0)
    }

    /// Applied optimizer steps, without those skipped for a non-finite loss or norm.
    #[must_use]
    pub fn updates(&self) -> usize {
        self.stepper.updates()
    }

    /// The current adapter.
    ///
    /// # Errors
    /// Never in practice: the trained tensors keep their shapes.
    pub fn parameters(&mut self) -> Result<&AdapterParameters> {
        self.adapter.set_tensors(self.stepper.parameters().to_vec())?;
        Ok(&self.adapter)
    }

    /// Runs to the end, or until the observer breaks; in both cases the parameters are those of the last completed
    /// step.
    ///
    /// # Errors
    /// When a step fails, or too many consecutive steps, or all steps of a run, have a non-finite loss or gradient.
    pub fn run(&mut self, observer: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Summary> {
        let start = Instant::now();
        let mut run = Summary {
            steps: 0,
            seconds: 0.0,
            tokens: 0,
            supervised_tokens: 0,
            first_loss: f64::NAN,
            last_loss: f64::NAN,
            skipped_steps: 0,
            evaluation_loss: None,
            stopped_early: false,
        };
        let train = self.train.clone();
        let mut batches = train.iter_from(Cursor::default()).peekable();
        while run.steps < self.total_steps && !run.stopped_early {
            let mut group = Vec::new();
            while let Some((_, batch)) = batches.next() {
                // The last group of an epoch may be smaller: gradients never mix epochs.
                let ends_epoch = batches.peek().is_none_or(|(next, _)| next.index == 0);
                group.push(batch);
                if group.len() == self.config.gradient_accumulation_steps || ends_epoch {
                    break;
                }
            }
            let place = batches.peek().map_or(Cursor::default(), |(cursor, _)| *cursor);
            let epoch = place.epoch as f64 + place.index as f64 / train.batches_in(place.epoch).max(1) as f64;
            let report = self.step(run.steps, epoch, &group)?;
            run.steps += 1;
            run.tokens += report.tokens;
            run.supervised_tokens += report.supervised_tokens;
            if run.steps == 1 {
                run.first_loss = report.loss;
            }
            run.last_loss = report.loss;
            run.skipped_steps += usize::from(report.skipped);
            run.stopped_early = observer(&Event::Step(report)).is_break();
            let due = self
                .config
                .eval_steps
                .is_some_and(|every| run.steps.is_multiple_of(every));
            if !run.stopped_early && (due || run.steps == self.total_steps) {
                self.evaluate_within(&mut run, observer)?;
            }
        }
        run.seconds = start.elapsed().as_secs_f64();
        // A short run may end before the limit of consecutive skipped steps.
        if run.skipped_steps == run.steps && !run.stopped_early {
            return Err(self.not_finite().into());
        }
        Ok(run)
    }

    /// Mean loss over the supervised tokens of the validation set, and their number; `None` without such a set.
    ///
    /// # Errors
    /// When a kernel fails.
    pub fn evaluate(&self) -> Result<Option<(f64, usize)>> {
        self.measure(&mut |_, _| ControlFlow::Continue(()))
    }

    /// An evaluation during a run, which the observer may interrupt.
    fn evaluate_within(&self, run: &mut Summary, observer: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<()> {
        let step = run.steps;
        let measured = self.measure(&mut |batches, total_batches| {
            let going_on = observer(&Event::Evaluating {
                step,
                batches,
                total_batches,
            });
            run.stopped_early |= going_on.is_break();
            going_on
        })?;
        if let Some((loss, supervised_tokens)) = measured {
            run.evaluation_loss = Some(loss);
            let event = Event::Evaluation {
                step,
                loss,
                supervised_tokens,
            };
            run.stopped_early |= observer(&event).is_break();
        }
        Ok(())
    }

    /// See [`evaluate`](Self::evaluate); `going_on` is called for each batch, and the result is `None` if it breaks.
    fn measure(&self, going_on: &mut dyn FnMut(usize, usize) -> ControlFlow<()>) -> Result<Option<(f64, usize)>> {
        let Some(validation) = &self.validation else {
            return Ok(None);
        };
        let (mut sum, mut count) = (0.0, 0);
        let total = validation.batches_in(0);
        for (done, (_, batch)) in (1..).zip(validation.epoch(0)) {
            let mut arguments = self.stepper.parameters().to_vec();
            arguments.extend(self.inputs(&batch, 0)?);
            sum += (self.evaluator)(arguments)?[0].cast(DType::F64)?.to_scalar::<f64>()?;
            count += batch.supervised_tokens();
            if going_on(done, total).is_break() {
                return Ok(None);
            }
        }
        Ok(Some((sum / count.max(1) as f64, count)))
    }

    /// Profiles a step on the first batch: see [`Stepper::explain`].
    ///
    /// # Errors
    /// When a kernel fails, or a parameter is not reachable from the loss.
    pub fn explain(&self) -> Result<Vec<(&'static str, Explanation)>> {
        let Some((_, batch)) = self.train.iter_from(Cursor::default()).next() else {
            return Ok(Vec::new());
        };
        let inputs = self.inputs(&batch, 0)?;
        self.stepper.explain(&inputs).map_err(|error| self.named(error))
    }

    fn step(&mut self, step: usize, epoch: f64, group: &[Batch]) -> Result<StepReport> {
        let start = Instant::now();
        let supervised_tokens = group.iter().map(Batch::supervised_tokens).sum();
        let number = |i: usize| (step * self.config.gradient_accumulation_steps + i) as u64;
        let inputs = group.iter().enumerate().map(|(i, batch)| self.inputs(batch, number(i)));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let learning_rate = self.config.learning_rate_at(step, self.total_steps);
        let outcome = self
            .stepper
            .step(&inputs, supervised_tokens, learning_rate, self.config.max_grad_norm)
            .map_err(|error| self.named(error))?;
        self.skipped_in_a_row = if outcome.applied { 0 } else { self.skipped_in_a_row + 1 };
        self.last_outcome = Some(outcome);
        if self.skipped_in_a_row > self.config.max_nonfinite_steps {
            return Err(self.not_finite().into());
        }
        Ok(StepReport {
            step: step + 1,
            total_steps: self.total_steps,
            epoch,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            learning_rate,
            tokens: group
                .iter()
                .flat_map(|batch| &batch.segments)
                .filter(|segment| **segment != 0)
                .count(),
            supervised_tokens,
            seconds: start.elapsed().as_secs_f64(),
            skipped: !outcome.applied,
        })
    }

    /// The error for too many non-finite steps.
    fn not_finite(&self) -> TrainingError {
        let last = |part: fn(&StepOutcome) -> f64| self.last_outcome.as_ref().map_or(f64::NAN, part);
        TrainingError::NotFinite {
            steps: self.skipped_in_a_row,
            loss: last(|outcome| outcome.loss),
            grad_norm: last(|outcome| outcome.grad_norm),
        }
    }

    /// The arguments of the compiled functions for a batch: tokens, targets, dropout key, and for packed rows segments
    /// and positions.
    fn inputs(&self, batch: &Batch, number: u64) -> Result<Vec<LazyTensor>> {
        let shape = [batch.rows, batch.length];
        let key = [
            self.config.seed as u32,
            (self.config.seed >> 32) as u32,
            number as u32,
            0,
        ];
        let mut inputs = vec![
            LazyTensor::from_data(&batch.tokens, &shape, &self.device)?,
            LazyTensor::from_data(&batch.targets, &[batch.rows * batch.length], &self.device)?,
            LazyTensor::from_data(&key, &[4], &self.device)?,
        ];
        if self.config.packing {
            inputs.push(LazyTensor::from_data(&batch.segments, &shape, &self.device)?);
            inputs.push(LazyTensor::from_data(&batch.positions, &shape, &self.device)?);
        }
        Ok(inputs)
    }

    /// Adds the name of the parameter that the loss does not reach.
    fn named(&self, error: metal_candle_graph::Error) -> Error {
        match error {
            metal_candle_graph::Error::Unreachable { index, reason } => {
                let parameter = self.adapter.names().get(index).cloned().unwrap_or_default();
                TrainingError::Unreachable { parameter, reason }.into()
            }
            other => other.into(),
        }
    }
}

/// The loss of a batch, summed over its supervised tokens.
fn summed_loss(
    model: &dyn CausalLm,
    parameters: &[LazyTensor],
    batch: &[LazyTensor],
    packed: bool,
    dropout: bool,
) -> metal_candle_graph::Result<LazyTensor> {
    let (tokens, targets, key) = (&batch[0], &batch[1], &batch[2]);
    // Padding follows a row's text, where causal attention cannot see it; packed rows need their segments.
    let mut pass = if packed {
        Pass::new(batch[4].clone()).with_segments(batch[3].clone())
    } else {
        Pass::from_start(tokens.dims()[1], tokens.device())?
    };
    pass = pass.with_adapters(parameters);
    if dropout {
        pass = pass.with_dropout(key.clone());
    }
    let hidden = model.hidden(tokens, &mut pass)?;
    let [rows, length, width] = [0, 1, 2].map(|i| hidden.dims()[i]);
    let hidden = hidden.reshape(&[rows * length, width])?;
    hidden
        .cross_entropy(model.head(), targets, CrossEntropyOptions::default())?
        .sum_all()
}

fn total_steps(train: &Batches, config: &TrainerConfig) -> usize {
    if let Some(steps) = config.max_steps {
        return steps;
    }
    let group = config.gradient_accumulation_steps;
    let whole = config.num_train_epochs.floor() as u64;
    let steps: usize = (0..whole).map(|epoch| train.batches_in(epoch).div_ceil(group)).sum();
    let rest = (config.num_train_epochs - config.num_train_epochs.floor()) * train.batches_in(whole) as f64;
    (steps + (rest / group as f64).ceil() as usize).max(1)
}

/// Rejects token ids outside the vocabulary, and examples longer than the context, before any computation.
fn check_examples(model: &dyn CausalLm, sets: [Option<&Dataset>; 2]) -> Result<()> {
    let (vocabulary, context) = (model.config().vocab_size, model.config().max_position_embeddings);
    for example in sets.into_iter().flatten().flat_map(Dataset::examples) {
        let tokens = example.tokens.len();
        if tokens > context {
            return Err(TrainingError::TooLong { tokens, context }.into());
        }
        if let Some(&token) = example.tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(TrainingError::Token { token, vocabulary }.into());
        }
    }
    Ok(())
}

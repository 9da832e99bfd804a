//! One optimizer step over any parameters: forward and backward as one compiled function, the gradient norm as another,
//! clipping and `AdamW` as a third that updates parameters and state in place. What changes from step to step is an
//! argument, so a run has one plan per batch shape. Knows no model: the loss is a function given by the caller.

use candle_core::{DType, Device};
use metal_candle_graph::{AdamWOptions, Compiled, Error, Explanation, LazyTensor, Result, compile, value_and_grad};

type Function<'f> = Box<dyn Fn(&[LazyTensor]) -> Result<Vec<LazyTensor>> + Send + Sync + 'f>;

/// Parameters with their optimizer state.
///
/// ```
/// use candle_core::Device;
/// use metal_candle::graph::{AdamWOptions, LazyTensor};
/// use metal_candle::training::Stepper;
///
/// let weight = LazyTensor::from_slice(&[2.0], &[1], &Device::Cpu)?;
/// let options = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
/// // The loss is the sum over a batch; its input is one tensor.
/// let mut stepper = Stepper::new(vec![weight], options, |parameters, batch| parameters[0].mul(&batch[0])?.sum_all())?;
/// let batch = vec![LazyTensor::from_slice(&[3.0], &[1], &Device::Cpu)?];
/// let outcome = stepper.step(&[batch], 1, 0.1, 1.0)?;
/// assert_eq!((outcome.loss, outcome.grad_norm, outcome.applied), (6.0, 3.0, true));
/// assert!((stepper.parameters()[0].to_scalar::<f32>()? - 1.9).abs() < 1e-6);
/// # Ok::<(), metal_candle::graph::Error>(())
/// ```
pub struct Stepper<'f> {
    parameters: Vec<LazyTensor>,
    first: Vec<LazyTensor>,
    second: Vec<LazyTensor>,
    options: AdamWOptions,
    updates: i32,
    backward: Compiled<Function<'f>>,
    accumulate: Compiled<Function<'f>>,
    norm: Compiled<Function<'f>>,
    update: Compiled<Function<'f>>,
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the supervised tokens; may be NaN or infinite.
    pub loss: f64,
    /// Global norm of the mean gradient before clipping.
    pub grad_norm: f64,
    /// Whether the parameters were updated: not if loss or norm are non-finite.
    pub applied: bool,
}

impl<'f> Stepper<'f> {
    /// Prepares training of `parameters`. `loss(parameters, batch)` records the loss summed (not averaged) over a
    /// batch.
    ///
    /// # Errors
    /// When the engine cannot create the optimizer state.
    pub fn new(
        parameters: Vec<LazyTensor>,
        options: AdamWOptions,
        loss: impl Fn(&[LazyTensor], &[LazyTensor]) -> Result<LazyTensor> + Send + Sync + Clone + 'f,
    ) -> Result<Self> {
        let zeros = || {
            parameters
                .iter()
                .map(LazyTensor::zeros_like)
                .collect::<Result<Vec<_>>>()
        };
        let (first, second) = (zeros()?, zeros()?);
        let count = parameters.len();
        let again = loss.clone();
        Ok(Self {
            first,
            second,
            options,
            updates: 0,
            backward: compile(Box::new(move |arguments| {
                let (parameters, batch) = arguments.split_at(count);
                gradients(&loss, parameters, batch)
            })),
            accumulate: compile(Box::new(move |arguments| {
                let (parameters, rest) = arguments.split_at(count);
                let (sums, batch) = rest.split_at(count + 1);
                let found = gradients(&again, parameters, batch)?;
                sums.iter().zip(&found).map(|(sum, new)| sum.add(new)).collect()
            })),
            norm: compile(Box::new(|gradients| Ok(vec![global_norm(gradients)?]))),
            update: compile(Box::new(move |arguments| updates(arguments, count, options))),
            parameters,
        })
    }

    /// The current parameters.
    #[must_use]
    pub fn parameters(&self) -> &[LazyTensor] {
        &self.parameters
    }

    /// Number of applied optimizer steps.
    #[must_use]
    pub fn updates(&self) -> usize {
        self.updates as usize
    }

    /// Computes the mean gradient over the `supervised` tokens of all `batches` together, clips it to the global norm
    /// `max_norm` (0: no clipping), and applies one `AdamW` step. Nothing is applied if the loss or the norm is
    /// non-finite.
    ///
    /// # Errors
    /// When a batch does not fit the loss, or a parameter is not reachable from it.
    pub fn step(
        &mut self,
        batches: &[Vec<LazyTensor>],
        supervised: usize,
        learning_rate: f64,
        max_norm: f64,
    ) -> Result<StepOutcome> {
        let mut sums: Vec<LazyTensor> = Vec::new();
        for batch in batches {
            let mut arguments = self.parameters.clone();
            let function = if sums.is_empty() {
                &self.backward
            } else {
                &self.accumulate
            };
            arguments.append(&mut sums);
            arguments.extend(batch.iter().cloned());
            sums = function.call(arguments)?;
        }
        if sums.is_empty() {
            return Err(Error::Shape {
                operation: "step",
                message: "there is no batch".into(),
            });
        }
        let share = 1.0 / supervised.max(1) as f64;
        let loss = scalar(&sums.remove(0))? * share;
        let grad_norm = scalar(&self.norm.call(sums.clone())?[0])? * share;
        let applied = loss.is_finite() && grad_norm.is_finite();
        if applied {
            // PyTorch's clip_grad_norm_: max_norm / (norm + 1e-6), never above 1.
            let clip = if max_norm > 0.0 {
                (max_norm / (grad_norm + 1e-6)).min(1.0)
            } else {
                1.0
            };
            self.apply(sums, share * clip, learning_rate)?;
        }
        Ok(StepOutcome {
            loss,
            grad_norm,
            applied,
        })
    }

    /// Profiles a step on one batch: its three functions by name. Nothing is updated.
    ///
    /// # Errors
    /// See [`Self::step`].
    pub fn explain(&self, batch: &[LazyTensor]) -> Result<Vec<(&'static str, Explanation)>> {
        let mut arguments = self.parameters.clone();
        arguments.extend(batch.iter().cloned());
        let backward = self.backward.explain(&arguments)?;
        let gradients = self.backward.call(arguments)?.split_off(1);
        let norm = self.norm.explain(&gradients)?;
        let device = gradients.first().map_or(Device::Cpu, |g| g.device().clone());
        let mut arguments = [&self.parameters[..], &self.first, &self.second, &gradients].concat();
        arguments.push(LazyTensor::from_slice(&[0.0, 1.0, 1.0, 1.0], &[4], &device)?);
        let update = self.update.explain(&arguments)?;
        Ok(vec![
            ("forward and backward", backward),
            ("gradient norm", norm),
            ("update", update),
        ])
    }

    /// On an error, parameters, state and the number of updates are unchanged.
    fn apply(&mut self, gradients: Vec<LazyTensor>, factor: f64, learning_rate: f64) -> Result<()> {
        let device = gradients.first().map_or(Device::Cpu, |g| g.device().clone());
        let updates = self.updates + 1;
        let correction = |beta: f64| 1.0 - beta.powi(updates);
        let rates = [
            learning_rate,
            correction(self.options.beta1),
            correction(self.options.beta2),
            factor,
        ];
        let rates = rates.map(|rate| rate as f32);
        let rates = LazyTensor::from_slice(&rates, &[4], &device)?;
        let count = self.parameters.len();
        let mut arguments = std::mem::take(&mut self.parameters);
        arguments.append(&mut self.first);
        arguments.append(&mut self.second);
        arguments.extend(gradients);
        arguments.push(rates);
        let (state, outcome) = match self.update.call(arguments) {
            Ok(results) => (results, Ok(())),
            Err(failed) => {
                let (error, arguments) = failed.into_parts();
                (arguments, Err(error))
            }
        };
        self.put(state, count);
        if outcome.is_ok() {
            self.updates = updates;
        }
        outcome
    }

    /// Puts parameters, first and second moments back; drops the rest.
    fn put(&mut self, mut state: Vec<LazyTensor>, count: usize) {
        state.truncate(3 * count);
        self.second = state.split_off(2 * count);
        self.first = state.split_off(count);
        self.parameters = state;
    }
}

fn scalar(tensor: &LazyTensor) -> Result<f64> {
    tensor.cast(DType::F64)?.to_scalar()
}

/// The loss, then the gradient of each parameter.
fn gradients(
    loss: &impl Fn(&[LazyTensor], &[LazyTensor]) -> Result<LazyTensor>,
    parameters: &[LazyTensor],
    batch: &[LazyTensor],
) -> Result<Vec<LazyTensor>> {
    let (loss, gradients) = value_and_grad(&loss(parameters, batch)?, parameters)?;
    Ok(std::iter::once(loss).chain(gradients).collect())
}

fn nothing_to_train() -> Error {
    Error::Arity {
        operation: "step",
        expected: "at least 1 parameter".into(),
        found: 0,
    }
}

fn global_norm(gradients: &[LazyTensor]) -> Result<LazyTensor> {
    let mut squares = gradients.iter().map(|g| g.mul(g)?.sum_all());
    let first = squares.next().ok_or_else(nothing_to_train)??;
    squares.try_fold(first, |sum, square| sum.add(&square?))?.sqrt()
}

/// `(parameters, first, second, gradients, rates)` to `(parameters, first, second)`.
fn updates(arguments: &[LazyTensor], count: usize, options: AdamWOptions) -> Result<Vec<LazyTensor>> {
    let part = |i: usize| &arguments[i * count..(i + 1) * count];
    let rates = &arguments[4 * count];
    let mut states = Vec::with_capacity(count);
    for i in 0..count {
        let parameter = &part(0)[i];
        let rates = rates.cast(parameter.dtype())?;
        states.push(parameter.adamw(&part(3)[i], &part(1)[i], &part(2)[i], &rates, options)?);
    }
    let parameters = states.iter().map(|state| state.parameter.clone());
    let first = states.iter().map(|state| state.first.clone());
    Ok(parameters
        .chain(first)
        .chain(states.iter().map(|state| state.second.clone()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> LazyTensor {
        LazyTensor::from_slice(values, &[values.len()], &Device::Cpu).unwrap()
    }

    fn stepper<'f>() -> Stepper<'f> {
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
        };
        let loss = |parameters: &[LazyTensor], batch: &[LazyTensor]| {
            let rows = parameters[0].index_select(0, &batch[0])?;
            rows.mul(&rows)?.sum_all()
        };
        Stepper::new(vec![tensor(&[0.5, -1.5, 2.0])], options, loss).unwrap()
    }

    fn rows(of: &[u32]) -> Vec<Vec<LazyTensor>> {
        let rows = LazyTensor::from_data(of, &[of.len()], &Device::Cpu).unwrap();
        vec![vec![rows]]
    }

    /// The bits of parameters and moments, and the number of updates.
    fn state(stepper: &Stepper<'_>) -> (Vec<u32>, usize) {
        let all = [&stepper.parameters, &stepper.first, &stepper.second];
        let values = all.iter().flat_map(|list| list.iter());
        let values = values.flat_map(|tensor| tensor.to_vec::<f32>().unwrap());
        (values.map(f32::to_bits).collect(), stepper.updates())
    }

    #[test]
    fn a_failed_step_changes_nothing() {
        let (mut failing, mut other) = (stepper(), stepper());
        for step in 0..3 {
            let before = state(&failing);
            let fault = failing.step(&rows(&[0, 9]), 2, 0.1, 1.0).unwrap_err();
            assert!(matches!(fault, Error::Index { index: 9, size: 3, .. }), "{fault:?}");
            // The second of two batches.
            let batches = [rows(&[1]), rows(&[3])].concat();
            assert!(failing.step(&batches, 2, 0.1, 1.0).is_err());
            assert_eq!(state(&failing), before, "step {step}");
            for stepper in [&mut failing, &mut other] {
                assert!(stepper.step(&rows(&[0, 2]), 2, 0.1, 1.0).unwrap().applied);
            }
            assert_eq!(state(&failing), state(&other), "step {step}");
        }
    }

    #[test]
    fn a_failed_update_changes_nothing() {
        let (mut failing, mut other) = (stepper(), stepper());
        let (options, count) = (failing.options, failing.parameters.len());
        let update = || -> Function<'static> { Box::new(move |arguments| updates(arguments, count, options)) };
        // The update fails while it is traced, or at run time after it has computed new moments.
        let faults: [Function<'static>; 2] = [
            Box::new(|arguments| arguments[0].reshape(&[7]).map(|_| Vec::new())),
            Box::new(move |arguments| {
                let mut results = updates(arguments, count, options)?;
                let at = results[0].mul_scalar(0.0)?.add_scalar(9.0)?.cast(DType::U32)?;
                results.push(results[0].index_select(0, &at)?);
                Ok(results)
            }),
        ];
        for fault in faults {
            let before = state(&failing);
            failing.update = compile(fault);
            assert!(failing.step(&rows(&[1]), 1, 0.1, 1.0).is_err());
            assert_eq!(state(&failing), before);
            failing.update = compile(update());
            for stepper in [&mut failing, &mut other] {
                assert!(stepper.step(&rows(&[1]), 1, 0.1, 1.0).unwrap().applied);
            }
            assert_eq!(state(&failing), state(&other));
        }
    }
}

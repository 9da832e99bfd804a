//! `AdamW`: Adam with decoupled weight decay, matching `torch.optim.AdamW` step for step.
//!
//! Moments are f32 (f64 for f64 parameters) and each parameter counts its own steps. The optimizer only applies the
//! gradients it is given; it neither clips gradients nor follows a schedule.

use std::collections::HashMap;

use candle_core::{DType, Tensor, TensorId, Var};

use crate::error::{During, Error, Result, TrainingError, shape_text};

const NAME: &str = "AdamW step";

/// The settings of [`AdamW`].
///
/// # Example
///
/// ```
/// use metal_candle::training::AdamWConfig;
///
/// let config = AdamWConfig { learning_rate: 2e-4, ..AdamWConfig::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Learning rate; 1e-4 to 1e-3 is usual for adapters.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator for numerical stability.
    pub epsilon: f32,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
}

impl Default for AdamWConfig {
    /// Learning rate 1e-4, betas 0.9 and 0.999, epsilon 1e-8, weight decay 0.01.
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        }
    }
}

impl AdamWConfig {
    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`TrainingError::InvalidConfig`] unless learning rate and epsilon are finite and above 0, both betas are in
    /// `[0, 1)`, and weight decay is finite and at least 0.
    pub fn validate(&self) -> Result<()> {
        let above_zero = |x: f32| x.is_finite() && x > 0.0;
        let fraction = |x: f32| (0.0..1.0).contains(&x);
        for (name, value, valid, range) in [
            (
                "learning_rate",
                self.learning_rate,
                above_zero(self.learning_rate),
                "finite and above 0",
            ),
            ("beta1", self.beta1, fraction(self.beta1), "at least 0 and below 1"),
            ("beta2", self.beta2, fraction(self.beta2), "at least 0 and below 1"),
            ("epsilon", self.epsilon, above_zero(self.epsilon), "finite and above 0"),
            (
                "weight_decay",
                self.weight_decay,
                is_rate(self.weight_decay),
                "finite and at least 0",
            ),
        ] {
            if !valid {
                return Err(TrainingError::config(format!(
                    "AdamW {name} is {value}, it must be {range}"
                )));
            }
        }
        Ok(())
    }
}

/// Whether a number is finite and at least 0.
fn is_rate(x: f32) -> bool {
    x.is_finite() && x >= 0.0
}

/// The `AdamW` optimizer:
///
/// ```text
/// m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
/// w = w (1 - lr decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
/// ```
///
/// # Example
///
/// ```
/// use candle_core::{Device, Var};
/// use metal_candle::training::{AdamW, AdamWConfig};
///
/// # fn main() -> metal_candle::Result<()> {
/// let w = Var::new(&[3f32, -2.0], &Device::Cpu)?;
/// let mut optimizer = AdamW::new(AdamWConfig { learning_rate: 0.1, ..AdamWConfig::default() })?;
/// for _ in 0..100 {
///     let gradients = w.sqr()?.sum_all()?.backward()?;
///     optimizer.step_var(&w, gradients.get(&w).expect("w is in the loss"))?;
/// }
/// assert!(w.sqr()?.sum_all()?.to_scalar::<f32>()? < 0.05);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: HashMap<ParameterKey, State>,
}

/// A parameter is identified by its name or by its variable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ParameterKey {
    Name(String),
    Var(TensorId),
}

/// The state of one parameter.
#[derive(Debug)]
struct State {
    shape: Vec<usize>,
    steps: usize,
    /// m and v; none before the first step.
    moments: Option<(Tensor, Tensor)>,
}

impl AdamW {
    /// An optimizer without parameters.
    ///
    /// # Errors
    ///
    /// If `config` is invalid.
    pub fn new(config: AdamWConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            parameters: HashMap::new(),
        })
    }

    /// Registers `param` under `name` for [`step`](Self::step); an existing name is reset.
    ///
    /// # Errors
    ///
    /// If `param` is not of a floating-point dtype.
    pub fn add_parameter(&mut self, name: impl Into<String>, param: &Tensor) -> Result<()> {
        let name = name.into();
        if !param.dtype().is_float() {
            return Err(Error::invalid_input(
                "AdamW",
                format!(
                    "parameter `{name}` is {:?}, only floating-point parameters can be trained",
                    param.dtype()
                ),
            ));
        }
        self.parameters.insert(ParameterKey::Name(name), State::new(param));
        Ok(())
    }

    /// Updates the parameter added as `name`: returns its new value, from its value and gradient of the same shape.
    ///
    /// # Errors
    ///
    /// If `name` was not added, the shapes differ, or the learning rate is invalid.
    pub fn step(&mut self, name: &str, param: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let state = self
            .parameters
            .get_mut(&ParameterKey::Name(name.into()))
            .ok_or_else(|| TrainingError::StateError {
                reason: format!("the optimizer has no parameter `{name}`, add it with `add_parameter`"),
            })?;
        state.step(&self.config, format_args!("parameter `{name}`"), param, grad)
    }

    /// Updates `var` in place. A variable is registered by its first step.
    ///
    /// # Errors
    ///
    /// If `grad` does not have the shape of `var`, or the learning rate is invalid; `var` is unchanged then.
    pub fn step_var(&mut self, var: &Var, grad: &Tensor) -> Result<()> {
        let key = ParameterKey::Var(var.id());
        let state = self.parameters.entry(key).or_insert_with(|| State::new(var));
        let updated = state.step(&self.config, "variable", var, grad)?;
        var.set(&updated)
            .during(format_args!("{NAME}: storing variable {}", shape_text(var.dims())))
    }

    /// Sets the learning rate of the following steps; 0 leaves parameters unchanged.
    pub fn set_lr(&mut self, lr: f32) {
        self.config.learning_rate = lr;
    }

    /// The current learning rate.
    #[must_use]
    pub const fn learning_rate(&self) -> f32 {
        self.config.learning_rate
    }

    /// Number of steps: the maximum over all parameters.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.parameters.values().map(|state| state.steps).max().unwrap_or(0)
    }

    /// The current settings.
    #[must_use]
    pub const fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// Resets moments and step counts; parameters stay registered.
    pub fn reset_state(&mut self) {
        for state in self.parameters.values_mut() {
            state.steps = 0;
            state.moments = None;
        }
    }
}

impl State {
    fn new(param: &Tensor) -> Self {
        Self {
            shape: param.dims().to_vec(),
            steps: 0,
            moments: None,
        }
    }

    /// The parameter's new value; the state is updated only on success.
    fn step(
        &mut self,
        config: &AdamWConfig,
        who: impl std::fmt::Display,
        param: &Tensor,
        grad: &Tensor,
    ) -> Result<Tensor> {
        for (what, tensor) in [("its value", param), ("its gradient", grad)] {
            if tensor.dims() != self.shape {
                let (known, given) = (shape_text(&self.shape), shape_text(tensor.dims()));
                let reason = format!("{who} has shape {known}, {what} has shape {given}");
                return Err(Error::invalid_input(NAME, reason));
            }
        }
        if !is_rate(config.learning_rate) {
            let lr = config.learning_rate;
            return Err(TrainingError::config(format!(
                "AdamW learning_rate is {lr}, it must be finite and at least 0"
            )));
        }
        let steps = self.steps + 1;
        let (updated, moments) = update(config, steps, param, grad, self.moments.as_ref())
            .during(format_args!("{NAME}: {who} {}", shape_text(&self.shape)))?;
        (self.steps, self.moments) = (steps, Some(moments));
        Ok(updated)
    }
}

type Moments = (Tensor, Tensor);

/// The new parameter, in its own dtype, and the new moments; `t` counts from 1.
fn update(
    config: &AdamWConfig,
    t: usize,
    param: &Tensor,
    grad: &Tensor,
    moments: Option<&Moments>,
) -> candle_core::Result<(Tensor, Moments)> {
    let dtype = if param.dtype() == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    // Detached, or the state would keep the graphs of all past steps alive.
    let w = param.detach().to_dtype(dtype)?;
    let g = grad.detach().to_dtype(dtype)?;
    let [lr, beta1, beta2, epsilon, decay] = [
        config.learning_rate,
        config.beta1,
        config.beta2,
        config.epsilon,
        config.weight_decay,
    ]
    .map(f64::from);

    let m = blend(moments.map(|(m, _)| m), &g, beta1)?;
    let v = blend(moments.map(|(_, v)| v), &g.sqr()?, beta2)?;
    let t = t as f64;
    let root = (v.sqrt()? / (1.0 - beta2.powf(t)).sqrt())?;
    let change = ((&m / (root + epsilon)?)? * (lr / (1.0 - beta1.powf(t))))?;
    let updated = ((w * (1.0 - lr * decay))? - change)?;
    Ok((updated.to_dtype(param.dtype())?, (m, v)))
}

/// `beta * mean + (1 - beta) * x`, with zero for a missing mean.
fn blend(mean: Option<&Tensor>, x: &Tensor, beta: f64) -> candle_core::Result<Tensor> {
    let fresh = (x * (1.0 - beta))?;
    match mean {
        Some(mean) => (mean * beta)? + fresh,
        None => Ok(fresh),
    }
}

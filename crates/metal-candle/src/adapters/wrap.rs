//! Wraps the linear layers of a model with adapters, from outside: models contain no `LoRA` code.
//!
//! A trainable adapter keeps its factors in [`AdapterParameters`], which are passed to each forward pass, so that a
//! compiled step can take them as arguments. An adapter for inference keeps them in the layers. Factors are f32, `A`
//! `(in, rank)` and `B` `(rank, out)`; PEFT's files hold their transposes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use metal_candle_graph::{LazyTensor, random};

use super::error::Result;
use super::files::HEAD_AND_EMBEDDING;
use super::target_modules::{quoted, select_any};
use super::{Adapter, AdapterConfig, AdapterError, LoraPair, TargetModules, select, write_adapter};
use crate::models::CausalLm;
use crate::nn::{Pass, Projection};

/// `y = base(x) + (dropout(x) A B) * scaling`.
pub struct LoraLinear {
    base: Arc<dyn Projection>,
    factors: FactorSource,
    scaling: f32,
    dropout: f32,
}

/// The location of a layer's factors.
enum FactorSource {
    /// Module number `.0` of the forward pass.
    OfPass(usize),
    /// Stored in the layer.
    Own(LazyTensor, LazyTensor),
}

impl LoraLinear {
    fn factors<'a>(&'a self, pass: &'a Pass<'_>) -> metal_candle_graph::Result<(&'a LazyTensor, &'a LazyTensor)> {
        match &self.factors {
            FactorSource::OfPass(index) => pass.adapter(*index),
            FactorSource::Own(a, b) => Ok((a, b)),
        }
    }

    /// The adapter's input, with dropout in training.
    fn input(&self, x: &LazyTensor, pass: &Pass<'_>) -> metal_candle_graph::Result<LazyTensor> {
        match self.factors {
            FactorSource::OfPass(index) if self.dropout > 0.0 => match pass.dropout_key(index)? {
                Some(key) => x.dropout(self.dropout, &key),
                None => Ok(x.clone()),
            },
            _ => Ok(x.clone()),
        }
    }
}

impl Projection for LoraLinear {
    fn forward(&self, x: &LazyTensor, pass: &Pass<'_>) -> metal_candle_graph::Result<LazyTensor> {
        let (a, b) = self.factors(pass)?;
        let (a, b) = (a.cast(x.dtype())?, b.cast(x.dtype())?);
        let low_rank = self.input(x, pass)?.lora_fused(&a, &b, self.scaling)?;
        self.base.forward(x, pass)?.add(&low_rank)
    }

    fn in_features(&self) -> usize {
        self.base.in_features()
    }

    fn out_features(&self) -> usize {
        self.base.out_features()
    }

    fn base(&self) -> Option<&Arc<dyn Projection>> {
        Some(&self.base)
    }
}

/// An adapted linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptedModule {
    /// Its full name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Size of its input.
    pub in_features: usize,
    /// Size of its output.
    pub out_features: usize,
    /// Rank of its factors.
    pub rank: usize,
    /// Factor of its low-rank term.
    pub scaling: f64,
}

/// The trainable weights of an adapted model.
#[derive(Debug, Clone)]
pub struct AdapterParameters {
    config: AdapterConfig,
    modules: Vec<AdaptedModule>,
    tensors: Vec<LazyTensor>,
}

impl AdapterParameters {
    /// The settings they were made with.
    #[must_use]
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The adapted layers, in the order in which they run.
    #[must_use]
    pub fn modules(&self) -> &[AdaptedModule] {
        &self.modules
    }

    /// The factors, f32: `A` `(in, rank)` and `B` `(rank, out)` of each module in order, for [`Pass::with_adapters`].
    #[must_use]
    pub fn tensors(&self) -> &[LazyTensor] {
        &self.tensors
    }

    /// The name of each of [`tensors`](Self::tensors): the module's, followed by `.lora_A` or `.lora_B`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let of = |module: &AdaptedModule| ["lora_A", "lora_B"].map(|half| format!("{}.{half}", module.name));
        self.modules.iter().flat_map(of).collect()
    }

    /// Number of trainable weights.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.shape().elem_count()).sum()
    }

    /// Replaces the factors, for example with those of a training step.
    ///
    /// # Errors
    /// [`AdapterError::Graph`] unless number, shapes and dtypes are the same.
    pub fn set_tensors(&mut self, tensors: Vec<LazyTensor>) -> Result<()> {
        let fits = tensors.len() == self.tensors.len()
            && tensors
                .iter()
                .zip(&self.tensors)
                .all(|(new, old)| new.meta() == old.meta());
        if !fits {
            let message = "the tensors do not have the number, shapes and dtypes of the adapter's".to_owned();
            return Err(metal_candle_graph::Error::Shape {
                operation: "set_tensors",
                message,
            }
            .into());
        }
        self.tensors = tensors;
        Ok(())
    }

    /// Replaces the factors by those of an adapter read from a file.
    ///
    /// # Errors
    /// [`AdapterError`] naming the first tensor that is missing, extra or misshapen.
    pub fn set_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        let sizes: Vec<_> = self
            .modules
            .iter()
            .map(|m| (m.name.clone(), m.in_features, m.out_features))
            .collect();
        adapter.check_against(&sizes)?;
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (module, old) in self.modules.iter().zip(self.tensors.chunks_exact(2)) {
            tensors.extend(of_pair(&module.name, &adapter.pairs[&module.name], old[0].device())?);
        }
        self.set_tensors(tensors)
    }

    /// The factors in PEFT's layout, by module.
    ///
    /// # Errors
    /// [`AdapterError::Graph`] if a factor cannot be computed, [`AdapterError::Tensor`] if it cannot be transposed.
    pub fn to_pairs(&self) -> Result<BTreeMap<String, LoraPair>> {
        let pair = |(module, ab): (&AdaptedModule, &[LazyTensor])| {
            let turned = |t: &LazyTensor| transposed(&module.name, &t.eval()?);
            Ok((
                module.name.clone(),
                LoraPair {
                    a: turned(&ab[0])?,
                    b: turned(&ab[1])?,
                },
            ))
        };
        self.modules
            .iter()
            .zip(self.tensors.chunks_exact(2))
            .map(pair)
            .collect()
    }

    /// Writes the adapter so that PEFT can load it; see [`write_adapter`].
    ///
    /// # Errors
    /// See [`write_adapter`]; after an error the old adapter is unchanged or completely replaced.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_adapter(folder, &self.config, &self.to_pairs()?)
    }
}

/// Wraps the linear layers that `config` targets, for training: `A` is uniform in `-1/sqrt(in)..1/sqrt(in)` as in PEFT,
/// a function of `seed` and the module's number; `B` is zero, so the output is unchanged at first. Until [`detach`],
/// each [`Pass`] needs the returned factors.
///
/// # Errors
/// [`AdapterError::AlreadyAdapted`] for a model that has an adapter, [`AdapterError::Setting`] for a setting out of
/// range, [`AdapterError::NothingMatched`] for a target without a matching layer, [`AdapterError::HeadOrEmbedding`] for
/// a target that is the head or the embedding. The model is unchanged then.
pub fn apply(model: &mut dyn CausalLm, config: &AdapterConfig, seed: u64) -> Result<AdapterParameters> {
    let linears = linears(model)?;
    config.validate()?;
    refuse_head_and_embedding(&config.target_modules)?;
    let picked = select(&linears.names(), &config.target_modules, HEAD)?;
    start(model, config, linears.modules(picked, config)?, seed)
}

/// Wraps the modules with newly initialised factors.
fn start(
    model: &mut dyn CausalLm,
    config: &AdapterConfig,
    modules: Vec<AdaptedModule>,
    seed: u64,
) -> Result<AdapterParameters> {
    let device = model.head().device().clone();
    let mut tensors = Vec::with_capacity(2 * modules.len());
    for (number, module) in modules.iter().enumerate() {
        tensors.push(initial_a(module, number, seed, &device)?);
        let b = vec![0f32; module.rank * module.out_features];
        tensors.push(LazyTensor::from_slice(
            &b,
            &[module.rank, module.out_features],
            &device,
        )?);
    }
    let factors = (0..modules.len()).map(FactorSource::OfPass).collect();
    wrap(model, &modules, factors, config.lora_dropout as f32);
    Ok(AdapterParameters {
        config: config.clone(),
        modules,
        tensors,
    })
}

/// Wraps a model with an adapter from a file, to continue training it: [`apply`] with the file's settings and weights.
///
/// # Errors
/// See [`attach`]. The model is wrapped only if the adapter matches it.
pub fn apply_adapter(model: &mut dyn CausalLm, adapter: &Adapter) -> Result<AdapterParameters> {
    let modules = check(model, adapter)?;
    let mut parameters = start(model, &adapter.config, modules, 0)?;
    parameters.set_adapter(adapter)?;
    Ok(parameters)
}

/// Wraps a model with an adapter from a file, for inference: the weights are stored in the layers, and a [`Pass`] needs
/// no factors.
///
/// # Errors
/// [`AdapterError::AlreadyAdapted`] for a model that has an adapter; [`AdapterError`] naming the targets if none
/// matches a layer, or the tensor that is missing, extra or misshapen. The model is unchanged then. As in PEFT, one
/// matching entry of a list of targets is enough; the others are listed in a warning through `tracing`.
pub fn attach(model: &mut dyn CausalLm, adapter: &Adapter) -> Result<()> {
    let modules = check(model, adapter)?;
    let device = model.head().device().clone();
    let own = |module: &AdaptedModule| {
        let [a, b] = of_pair(&module.name, &adapter.pairs[&module.name], &device)?;
        Ok(FactorSource::Own(a, b))
    };
    let factors = modules.iter().map(own).collect::<Result<_>>()?;
    wrap(model, &modules, factors, 0.0);
    Ok(())
}

/// Removes the adapter, however it was added: the model is the base model again, bit for bit, and can take another
/// adapter. Returns the number of adapted layers; without any, nothing changes.
///
/// ```
/// use candle_core::{DType, Device};
/// use metal_candle::adapters::{self, AdapterConfig, AdapterError};
///
/// # fn main() -> Result<(), metal_candle::Error> {
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/llama-tiny");
/// let mut model = metal_candle::models::load_model(folder, DType::F32, &Device::Cpu)?;
/// let first = adapters::apply(&mut *model, &AdapterConfig::default(), 1)?;
/// let refused = adapters::apply(&mut *model, &AdapterConfig::default(), 2);
/// assert!(matches!(refused, Err(AdapterError::AlreadyAdapted { .. })));
/// assert_eq!(adapters::detach(&mut *model), first.modules().len());
/// adapters::apply(&mut *model, &AdapterConfig::default(), 2)?;
/// # Ok(())
/// # }
/// ```
pub fn detach(model: &mut dyn CausalLm) -> usize {
    let mut count = 0;
    model.for_each_linear(&mut |_, linear| {
        count += usize::from(linear.base().is_some());
        while let Some(base) = linear.base().cloned() {
            *linear = base;
        }
    });
    count
}

/// The modules of an adapter, checked against a model.
fn check(model: &mut dyn CausalLm, adapter: &Adapter) -> Result<Vec<AdaptedModule>> {
    let linears = linears(model)?;
    adapter.config.validate()?;
    let selection = select_any(&linears.names(), &adapter.config.target_modules, HEAD)?;
    let modules = linears.modules(selection.picked, &adapter.config)?;
    let sizes: Vec<_> = modules
        .iter()
        .map(|m| (m.name.clone(), m.in_features, m.out_features))
        .collect();
    adapter.check_against(&sizes)?;
    if !selection.unmatched.is_empty() {
        let entries: Vec<String> = selection.unmatched.iter().map(|entry| quoted(entry)).collect();
        tracing::warn!(
            "target_modules: no layer of this model matches {}; the adapter is on the others of the list",
            entries.join(", ")
        );
    }
    Ok(modules)
}

/// The name of the output head, which `all-linear` excludes.
const HEAD: &str = HEAD_AND_EMBEDDING[0];

/// Rejects targets of a new adapter that are the head or the embedding, which PEFT would adapt.
fn refuse_head_and_embedding(targets: &TargetModules) -> Result<()> {
    let wanted = targets.matcher(HEAD)?;
    let is_all = matches!(targets, TargetModules::AllLinear);
    match HEAD_AND_EMBEDDING.into_iter().find(|module| !is_all && wanted(module)) {
        None => Ok(()),
        Some(module) => Err(AdapterError::HeadOrEmbedding {
            place: "target_modules".to_owned(),
            module: module.to_owned(),
            advice: "; `all-linear` means every other linear layer",
        }),
    }
}

/// The linear layers of a base model: name, input size, output size.
struct Linears(Vec<(String, usize, usize)>);

/// The linear layers of a model without an adapter.
fn linears(model: &mut dyn CausalLm) -> Result<Linears> {
    let (mut linears, mut adapted) = (Vec::new(), None);
    model.for_each_linear(&mut |name, linear| {
        if linear.base().is_some() {
            adapted.get_or_insert_with(|| name.to_owned());
        }
        linears.push((name.to_owned(), linear.in_features(), linear.out_features()));
    });
    match adapted {
        None => Ok(Linears(linears)),
        Some(module) => Err(AdapterError::AlreadyAdapted { module }),
    }
}

impl Linears {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// The selected layers, with their ranks and scalings.
    fn modules(&self, picked: Vec<String>, config: &AdapterConfig) -> Result<Vec<AdaptedModule>> {
        let sizes: HashMap<&str, (usize, usize)> =
            self.0.iter().map(|(name, i, o)| (name.as_str(), (*i, *o))).collect();
        let each = config.per_module()?;
        let module = |name: String| {
            let (in_features, out_features) = sizes[name.as_str()];
            let (rank, scaling) = (each.rank_of(&name), each.scaling_of(&name));
            AdaptedModule {
                name,
                in_features,
                out_features,
                rank,
                scaling,
            }
        };
        Ok(picked.into_iter().map(module).collect())
    }
}

/// Installs the wrappers.
fn wrap(model: &mut dyn CausalLm, modules: &[AdaptedModule], factors: Vec<FactorSource>, dropout: f32) {
    let mut waiting: HashMap<&str, (f64, FactorSource)> = modules
        .iter()
        .zip(factors)
        .map(|(module, factors)| (module.name.as_str(), (module.scaling, factors)))
        .collect();
    model.for_each_linear(&mut |name, linear| {
        if let Some((scaling, factors)) = waiting.remove(name) {
            let base = Arc::clone(linear);
            *linear = Arc::new(LoraLinear {
                base,
                factors,
                scaling: scaling as f32,
                dropout,
            });
        }
    });
}

/// Uniform in `-1/sqrt(in)..1/sqrt(in)`: Kaiming's bound for a slope of `sqrt(5)`.
fn initial_a(module: &AdaptedModule, number: usize, seed: u64, device: &Device) -> Result<LazyTensor> {
    // The second word separates this stream from those of a training run with the same seed.
    let stream = [number as u32, 0x4c6f_5241];
    let bound = 1.0 / (module.in_features as f32).sqrt();
    let draws = random::uniform32([seed as u32, (seed >> 32) as u32], stream);
    let count = module.in_features * module.rank;
    let values: Vec<f32> = draws.take(count).map(|u| (2.0 * u - 1.0) * bound).collect();
    Ok(LazyTensor::from_slice(
        &values,
        &[module.in_features, module.rank],
        device,
    )?)
}

/// Converts PEFT's layout to the engine's.
fn of_pair(module: &str, pair: &LoraPair, device: &Device) -> Result<[LazyTensor; 2]> {
    let turned = |t: &Tensor| {
        let moved = t.to_device(device).map_err(|e| tensor_error(module, e))?;
        Ok::<_, AdapterError>(LazyTensor::from_tensor(transposed(module, &moved)?)?)
    };
    Ok([turned(&pair.a)?, turned(&pair.b)?])
}

fn transposed(module: &str, tensor: &Tensor) -> Result<Tensor> {
    tensor
        .t()
        .and_then(|t| t.contiguous())
        .map_err(|e| tensor_error(module, e))
}

fn tensor_error(module: &str, source: candle_core::Error) -> AdapterError {
    AdapterError::Tensor {
        name: module.to_owned(),
        source: Box::new(source),
    }
}

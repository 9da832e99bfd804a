//! `metal-candle train`: checks everything, trains, saves, reports.
//!
//! Nothing is written before all inputs were checked, but the output folder is claimed at once. However training ends
//! (done, a signal, a failure), the adapter of the last completed step is saved.

use metal_candle::adapters::{self, AdapterError, AdapterParameters, TargetModules};
use metal_candle::data::{Dataset, RowFormat, Rows};
use metal_candle::inference::Generator;
use metal_candle::training::{Summary, Trainer};

use crate::args::{ALL_LINEAR, Settings, TrainArgs};
use crate::base::Base;
use crate::console::{say, warn};
use crate::demo::{self, Question};
use crate::error::{Failure, Result};
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::plot::{self, Curve};
use crate::recorder::Recorder;
use crate::remarks::{Facts, remarks};
use crate::{config_file, report};

/// Runs the command; returns the exit code. `by_flag` tells which settings were given as flags.
pub fn run(arguments: TrainArgs, by_flag: &dyn Fn(&str) -> bool) -> Result<u8> {
    let interrupts = Interrupts::listen()?;
    let config = arguments.config.clone();
    let settings = config_file::settings(arguments, by_flag)?;
    check(&settings)?;
    let inputs = [
        ("the model", settings.model.as_deref()),
        ("the data", settings.data.as_deref()),
        ("the validation data", settings.validation.as_deref()),
        ("the settings file", config.as_deref()),
    ];
    let inputs: Vec<_> = inputs
        .into_iter()
        .filter_map(|(what, path)| Some((what, path?)))
        .collect();
    let output = Output::choose(settings.output.as_deref(), settings.overwrite_output, &inputs)?;
    let claim = output.claim();
    interrupts.clean_up(move || claim.withdraw());
    if is_demo(&settings) {
        for line in demo::INTRODUCTION {
            say(line);
        }
        say("");
    }
    let job = Job::prepare(settings)?;
    job.run(output, &interrupts, by_flag)
}

/// Whether both model and data are built in.
fn is_demo(settings: &Settings) -> bool {
    settings.model.is_none() && settings.data.is_none()
}

/// Checks settings without reading files.
fn check(settings: &Settings) -> Result<()> {
    if settings.model.is_some() && settings.data.is_none() {
        let tip = "give a JSONL file with --data; `metal-candle train --help` shows what is in it";
        return Err(Failure::with_tip(
            "--model is given without --data: there is nothing to train on",
            tip,
        ));
    }
    if settings.validation.is_some() && settings.validation_split != 0.0 {
        return Err(Failure::with_tip(
            "--validation and --validation-split are both given",
            "leave one of them out",
        ));
    }
    if !(0.0..1.0).contains(&settings.validation_split) {
        let share = settings.validation_split;
        return Err(Failure::input(format!(
            "--validation-split must be at least 0 and below 1, got {share}"
        )));
    }
    if settings.overwrite_output && settings.output.is_none() {
        let tip = "name the folder with --output, or leave --overwrite-output out: without it a free name is chosen";
        return Err(Failure::with_tip("--overwrite-output is given without --output", tip));
    }
    settings.device.device()?;
    check_targets(&settings.adapter(demo::NAME).target_modules)?;
    settings.adapter(demo::NAME).validate().map_err(Failure::checking)?;
    settings.trainer().validate().map_err(Failure::checking)
}

/// `all-linear` is not a name among others.
fn check_targets(targets: &TargetModules) -> Result<()> {
    match targets {
        TargetModules::Names(names) if names.iter().any(|name| name.eq_ignore_ascii_case(ALL_LINEAR)) => {
            Err(Failure::with_tip(
                format!("--target-modules: `{ALL_LINEAR}` is every linear layer, so it stands alone"),
                format!("give `{ALL_LINEAR}` only, or the other names only"),
            ))
        }
        _ => Ok(()),
    }
}

/// The checked inputs of a run.
struct Job {
    settings: Settings,
    base: Base,
    adapter: AdapterParameters,
    train: Dataset,
    validation: Option<Dataset>,
    /// Asked before and after training; empty except in the demonstration.
    questions: Vec<Question>,
    /// A description of the model.
    description: String,
    /// Whether the data is plain text.
    plain_text: bool,
    /// Number of linear layers that cannot be quantised, and of all.
    unquantized: (usize, usize),
    /// The detected format of the data.
    written: String,
}

impl Job {
    /// Reads the data (first, because it is quick), then the model.
    fn prepare(mut settings: Settings) -> Result<Self> {
        let rows = match &settings.data {
            Some(path) => Rows::read(path).map_err(Failure::checking)?,
            None => demo::training_rows()?,
        };
        let questions = if is_demo(&settings) {
            demo::questions()?
        } else {
            Vec::new()
        };
        let validation = settings
            .validation
            .as_ref()
            .map(Rows::read)
            .transpose()
            .map_err(Failure::checking)?;
        let device = settings.device.device()?;
        let mut base = Base::load(
            settings.model.as_deref(),
            settings.dtype.options(settings.quantize),
            &device,
        )?;
        settings.max_length = Some(max_length(&settings, &base)?);
        let (description, unquantized) = (base.describe(), base.unquantized());
        let config = settings.adapter(&base.name);
        let adapter = adapters::apply(&mut *base.loaded.model, &config, settings.seed).map_err(Failure::checking)?;
        let (train, validation) = datasets(&settings, &base, &rows, validation.as_ref())?;
        Ok(Self {
            settings,
            base,
            adapter,
            train,
            validation,
            questions,
            description,
            plain_text: rows.format == RowFormat::Text,
            unquantized,
            written: rows.describe(),
        })
    }

    /// Trains and reports; returns the exit code.
    fn run(self, mut output: Output, interrupts: &Interrupts, by_flag: &dyn Fn(&str) -> bool) -> Result<u8> {
        let Self {
            settings,
            base,
            adapter,
            train,
            validation,
            questions,
            description,
            plain_text,
            unquantized,
            written,
        } = self;
        let (stats, validates) = (train.stats(), validation.is_some());
        let model = format!("{} ({description})", base.name);
        report::beginning(&model, &adapter, &train, validation.as_ref(), &written);
        let mut generator = Generator::new(&base.loaded);
        generator.set_adapters(adapter.tensors());
        let mut trainer = Trainer::new(
            &*base.loaded.model,
            adapter,
            train,
            validation,
            settings.trainer(),
            base.pad_token(),
        )
        .map_err(Failure::checking)?;
        let facts = Facts {
            steps: trainer.total_steps(),
            batches: trainer.batches_per_epoch(),
            examples: stats.examples,
            validates,
            validates_on_training_data: same_data(&settings),
            plain_text,
            unquantized,
        };
        report::warnings(&report::cuts(&stats, settings.trainer().max_length));
        report::warnings(&remarks(&settings, by_flag, &facts));
        let before = (!questions.is_empty())
            .then(|| demo::measure(&generator, &questions, "before"))
            .transpose()?;

        let done = train_and_save(&mut trainer, &settings, &mut output, interrupts)?;
        if let Some(code) = done.signal {
            warn(&format!(
                "stopped after step {}; {}",
                done.summary.steps,
                whereabouts(&output, done.saved, done.picture)
            ));
            return Ok(code);
        }
        report::training(&done.summary);
        if let Some(before) = before {
            generator.set_adapters(trainer.parameters().map_err(Failure::running)?.tensors());
            report::comparison(&questions, &before, &demo::measure(&generator, &questions, "after")?);
        }
        report::ending(&output, &settings, questions.first().map(Question::text), done.picture);
        Ok(0)
    }
}

/// The training data, and the validation data.
fn datasets(
    settings: &Settings,
    base: &Base,
    rows: &Rows,
    validation: Option<&Rows>,
) -> Result<(Dataset, Option<Dataset>)> {
    let options = settings.dataset();
    let read = |rows| Dataset::from_rows(rows, &base.loaded.tokenizer, &options).map_err(Failure::checking);
    let train = read(rows)?;
    if let Some(rows) = validation {
        return Ok((train, Some(read(rows)?)));
    }
    let (train, validation) = train
        .split(settings.validation_split, settings.seed)
        .map_err(Failure::checking)?;
    Ok((train, Some(validation).filter(|set| !set.examples().is_empty())))
}

/// The maximum length: as given, checked against the model's context; by default at most the context.
fn max_length(settings: &Settings, base: &Base) -> Result<usize> {
    let context = base.loaded.model.config().max_position_embeddings;
    match settings.max_length {
        Some(given) if given > context => Err(Failure::with_tip(
            format!(
                "--max-length {given} is beyond the context of the model: {context} tokens (max_position_embeddings in config.json)"
            ),
            format!("give --max-length {context} or less, or leave it out"),
        )),
        Some(given) => Ok(given),
        None => Ok(settings.trainer().max_length.min(context)),
    }
}

/// Whether validation and training data are the same file.
fn same_data(settings: &Settings) -> bool {
    let files = settings.data.as_ref().zip(settings.validation.as_ref());
    files.is_some_and(|(data, validation)| same_file::is_same_file(data, validation).unwrap_or(false))
}

/// The result of training.
struct Done {
    summary: Summary,
    /// Whether an adapter was saved: not before a step was applied.
    saved: bool,
    /// Whether there is a plot.
    picture: bool,
    /// The exit code of the signal that ended it.
    signal: Option<u8>,
}

/// Trains; in any case the adapter is saved if a step was applied, and metrics and plot if one was completed.
fn train_and_save(
    trainer: &mut Trainer<'_>,
    settings: &Settings,
    output: &mut Output,
    interrupts: &Interrupts,
) -> Result<Done> {
    let mut recorder = Recorder::new(output.create(settings)?, output.metrics(), trainer.total_steps());
    interrupts.hold();
    let outcome = trainer.run(&mut |event| {
        recorder.observe(event)?;
        if interrupts.noted().is_some() {
            std::ops::ControlFlow::Break(())
        } else {
            std::ops::ControlFlow::Continue(())
        }
    });
    let began = !recorder.is_empty();
    let (curve, recorded) = recorder.finish();
    let saved = if trainer.updates() > 0 {
        save(trainer, output)
    } else {
        Ok(false)
    };
    let picture = began && write_picture(output, &curve);
    let saved = saved.and_then(|saved| {
        if saved {
            output.publish().map(|()| true)
        } else {
            Ok(false)
        }
    });
    interrupts.release();
    match outcome {
        Ok(summary) => match recorded.and(saved) {
            Ok(saved) => Ok(Done {
                summary,
                saved,
                picture,
                signal: interrupts.noted(),
            }),
            Err(failure) => {
                let (message, kept) = (failure.message(), kept(output, picture));
                Err(Failure::Run(format!("{message}\n\n  {kept}")))
            }
        },
        Err(error) if began => {
            let whereabouts = match saved {
                Ok(saved) => whereabouts(output, saved, picture),
                Err(failure) => format!("{}\n  {}", failure.message(), kept(output, picture)),
            };
            Err(Failure::Run(format!("{error}\n\n  {whereabouts}")))
        }
        Err(error) => {
            output.discard();
            Err(Failure::running(error))
        }
    }
}

/// Saves the adapter, unless an update made one of its weights infinite.
fn save(trainer: &mut Trainer<'_>, output: &Output) -> Result<bool> {
    let parameters = trainer.parameters().map_err(Failure::running)?;
    match parameters.save(&output.run()) {
        Ok(()) => Ok(true),
        Err(fault @ AdapterError::NotFinite { .. }) => Err(Failure::Run(format!(
            "{fault}; lower the learning rate (--learning-rate)"
        ))),
        Err(fault) => Err(Failure::running(fault)),
    }
}

/// Where to find the files of an interrupted run.
fn whereabouts(output: &Output, saved: bool, picture: bool) -> String {
    if saved {
        let (folder, loss) = (output.folder.display(), if picture { " and loss.svg" } else { "" });
        format!("the adapter of the last completed step is saved in {folder}, with metrics.jsonl{loss}")
    } else {
        format!("no step was applied, so there is no adapter; {}", kept(output, picture))
    }
}

/// The files of a run without an adapter.
fn kept(output: &Output, picture: bool) -> String {
    let loss = if picture { " and loss.svg" } else { "" };
    let earlier = if output.has_earlier() {
        "; the earlier run in the folder above is unchanged"
    } else {
        ""
    };
    format!("{} has metrics.jsonl{loss}{earlier}", output.run().display())
}

/// Writes the plot and tells whether there is one; a run does not fail because of it.
fn write_picture(output: &Output, curve: &Curve) -> bool {
    match plot::write(&output.picture(), curve) {
        Ok(()) => true,
        Err(failure) => {
            warn(&failure.to_string());
            false
        }
    }
}

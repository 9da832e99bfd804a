//! `metal-candle train`: check everything, train, save, report.
//!
//! Nothing is written before every input was found good. However training ends (done, a signal, a failure), the adapter
//! of the last whole step is saved.

use metal_candle::adapters::{self, AdapterParameters};
use metal_candle::data::{Dataset, Rows};
use metal_candle::inference::Generator;
use metal_candle::training::{Summary, Trainer};

use crate::args::{Settings, TrainArgs};
use crate::base::Base;
use crate::console::{say, warn};
use crate::demo::{self, Question};
use crate::error::{Failure, Result};
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::plot::{self, Curve};
use crate::recorder::Recorder;
use crate::{config_file, report};

/// Runs the command; returns the exit code. `by_flag` says which settings were given as flags.
pub fn run(arguments: TrainArgs, by_flag: &dyn Fn(&str) -> bool) -> Result<u8> {
    let interrupts = Interrupts::listen()?;
    let settings = config_file::settings(arguments, by_flag)?;
    check(&settings)?;
    let output = Output::choose(settings.output.as_deref(), settings.overwrite_output)?;
    if is_demo(&settings) {
        for line in demo::INTRODUCTION {
            say(line);
        }
        say("");
    }
    let job = Job::prepare(settings)?;
    job.run(&output, &interrupts)
}

/// Whether everything is built in.
fn is_demo(settings: &Settings) -> bool {
    settings.model.is_none() && settings.data.is_none()
}

/// What can be known to be wrong without reading a file.
fn check(settings: &Settings) -> Result<()> {
    if settings.model.is_some() && settings.data.is_none() {
        let tip = "give a JSONL file with --data; `metal-candle train --help` shows what is in it";
        return Err(Failure::with_tip(
            "--model is given but not --data: there is nothing to learn",
            tip,
        ));
    }
    if settings.validation.is_some() && settings.validation_split != 0.0 {
        return Err(Failure::with_tip(
            "--validation and --validation-split are both given",
            "leave one of them out",
        ));
    }
    settings.device.device()?;
    settings.adapter(demo::NAME).validate().map_err(Failure::checking)?;
    settings.trainer().validate().map_err(Failure::checking)
}

/// Everything that a run needs, found good.
struct Job {
    settings: Settings,
    base: Base,
    adapter: AdapterParameters,
    train: Dataset,
    validation: Option<Dataset>,
    /// Asked before and after; empty but in the demonstration.
    questions: Vec<Question>,
    /// What the model is.
    description: String,
    /// How the data is written.
    written: String,
}

impl Job {
    /// Reads the data (first, because it is quick), then the model.
    fn prepare(settings: Settings) -> Result<Self> {
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
        let description = base.describe();
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
            written: rows.describe(),
        })
    }

    /// Trains and reports; returns the exit code.
    fn run(self, output: &Output, interrupts: &Interrupts) -> Result<u8> {
        let Self {
            settings,
            base,
            adapter,
            train,
            validation,
            questions,
            description,
            written,
        } = self;
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
        let before = (!questions.is_empty())
            .then(|| demo::measure(&generator, &questions, "before"))
            .transpose()?;

        let done = train_and_save(&mut trainer, &settings, output, interrupts)?;
        if let Some(code) = done.signal {
            warn(&format!(
                "stopped after step {}; the adapter is saved in {}",
                done.summary.steps,
                output.folder.display()
            ));
            return Ok(code);
        }
        report::training(&done.summary);
        if let Some(before) = before {
            generator.set_adapters(trainer.parameters().map_err(Failure::running)?.tensors());
            report::comparison(&questions, &before, &demo::measure(&generator, &questions, "after")?);
        }
        let model = settings.model.as_ref().map(|model| model.display().to_string());
        report::ending(
            output,
            model.as_deref(),
            questions.first().map(Question::text),
            done.picture,
        );
        Ok(0)
    }
}

/// What to learn from, and what to measure on.
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

/// How training ended.
struct Done {
    summary: Summary,
    /// Whether there is a picture.
    picture: bool,
    /// The exit code of the signal that ended it.
    signal: Option<u8>,
}

/// Trains; the adapter and the picture are saved however that ends, once a step was done.
fn train_and_save(
    trainer: &mut Trainer<'_>,
    settings: &Settings,
    output: &Output,
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
    if began {
        save(trainer, output)?;
    }
    let picture = began && write_picture(output, &curve);
    interrupts.release();
    match outcome {
        Ok(summary) => recorded.map(|()| Done {
            summary,
            picture,
            signal: interrupts.noted(),
        }),
        Err(error) if began => {
            let (folder, loss) = (output.folder.display(), if picture { " and loss.svg" } else { "" });
            Err(Failure::Run(format!(
                "{error}\n\n  The adapter of the last whole step is in {folder}, with metrics.jsonl{loss}."
            )))
        }
        Err(error) => {
            output.discard();
            Err(Failure::running(error))
        }
    }
}

fn save(trainer: &mut Trainer<'_>, output: &Output) -> Result<()> {
    let parameters = trainer.parameters().map_err(Failure::running)?;
    parameters.save(&output.folder).map_err(Failure::running)
}

/// Whether there is a picture; a run is not lost for one.
fn write_picture(output: &Output, curve: &Curve) -> bool {
    match plot::write(&output.picture(), curve) {
        Ok(()) => true,
        Err(failure) => {
            warn(&failure.to_string());
            false
        }
    }
}

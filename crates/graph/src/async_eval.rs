//! Asynchronous evaluation: plans run on one worker thread, in the order in which they were submitted, and the polling
//! task is woken when the values are ready. It needs no particular executor and never blocks the thread that polls.
//!
//! While the worker runs one step, other threads record the next. Operations recorded on tensors that are still being
//! computed need nothing special: their turn comes after those tensors are evaluated.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use candle_core::Tensor;

use crate::backend::{forced, threads, with_backend, with_threads};
use crate::error::Result;
use crate::lazy_tensor::{LazyTensor, eval_all};

/// A running evaluation: a future that resolves to the value, once. Dropping it does not cancel the evaluation.
#[must_use = "the value comes out of the future"]
pub struct Evaluation<T = Tensor> {
    slot: Arc<Mutex<Slot<T>>>,
}

/// The state shared by the worker and the future.
enum Slot<T> {
    Running(Option<Waker>),
    /// The value, or the payload of a kernel's panic.
    Done(thread::Result<Result<T>>),
    Taken,
}

fn lock<T>(slot: &Mutex<Slot<T>>) -> MutexGuard<'_, Slot<T>> {
    // Every update is a single assignment, so a poisoned lock holds a valid state.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

type Task = Box<dyn FnOnce() + Send>;

/// Submits a task to the worker thread, which lives as long as the process; runs it here if the thread cannot be
/// started.
fn submit(task: Task) {
    static WORKER: LazyLock<Option<Sender<Task>>> = LazyLock::new(|| {
        let (sender, jobs) = channel::<Task>();
        let serve = move || jobs.into_iter().for_each(|task| task());
        let worker = thread::Builder::new().name("metal-candle-eval".into()).spawn(serve);
        worker.ok().map(|_| sender)
    });
    let left = match &*WORKER {
        Some(worker) => worker.send(task).err().map(|SendError(task)| task),
        None => Some(task),
    };
    if let Some(task) = left {
        task();
    }
}

/// Starts `evaluate` with this thread's backend and number of threads.
fn start<T: Send + 'static>(evaluate: impl FnOnce() -> Result<T> + Send + 'static) -> Evaluation<T> {
    let slot = Arc::new(Mutex::new(Slot::Running(None)));
    let (backend, threads, ours) = (forced(), threads(), Arc::clone(&slot));
    submit(Box::new(move || {
        let evaluate = || {
            with_threads(threads, || match backend {
                Some(backend) => with_backend(backend, evaluate),
                None => evaluate(),
            })
        };
        let done = Slot::Done(catch_unwind(AssertUnwindSafe(evaluate)));
        let before = std::mem::replace(&mut *lock(&ours), done);
        // Woken outside the lock: the waker may poll at once.
        if let Slot::Running(Some(waker)) = before {
            waker.wake();
        }
    }));
    Evaluation { slot }
}

/// Starts [`eval_all`] on the worker thread: the tensors become one plan, and common subexpressions are computed once.
///
/// # Errors
/// The future resolves to the errors of [`eval_all`].
pub fn eval_all_async(tensors: &[LazyTensor]) -> Evaluation<Vec<Tensor>> {
    let tensors = tensors.to_vec();
    start(move || eval_all(&tensors))
}

impl LazyTensor {
    /// Starts [`Self::eval`] on the worker thread and returns a future of the value.
    ///
    /// ```
    /// use std::task::{Context, Poll, Waker};
    ///
    /// use candle_core::Device;
    /// use metal_candle_graph::LazyTensor;
    ///
    /// let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu)?;
    /// let mut value = std::pin::pin!(x.add(&x)?.eval_async());
    /// // In an async function this loop is `.await`.
    /// let value = loop {
    ///     match value.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
    ///         Poll::Ready(value) => break value?,
    ///         Poll::Pending => std::thread::yield_now(),
    ///     }
    /// };
    /// assert_eq!(value.to_vec1::<f32>().unwrap(), [2.0, 4.0]);
    /// # Ok::<(), metal_candle_graph::Error>(())
    /// ```
    ///
    /// # Errors
    /// The future resolves to the errors of [`Self::eval`].
    pub fn eval_async(&self) -> Evaluation {
        let tensor = self.clone();
        start(move || tensor.eval())
    }
}

impl<T> Future for Evaluation<T> {
    type Output = Result<T>;

    /// # Panics
    /// If the kernel panicked, and if polled again after the value was taken.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = lock(&self.slot);
        if let Slot::Running(waker) = &mut *slot {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let done = std::mem::replace(&mut *slot, Slot::Taken);
        drop(slot);
        match done {
            Slot::Done(Ok(value)) => Poll::Ready(value),
            Slot::Done(Err(panic)) => resume_unwind(panic),
            Slot::Running(_) | Slot::Taken => panic!("an evaluation was polled after it was done"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::Wake;

    use candle_core::{CpuStorage, Device, InplaceOp1, Layout};

    use super::*;

    /// A waker that parks on a channel.
    struct ChannelWaker(mpsc::SyncSender<()>);

    impl Wake for ChannelWaker {
        fn wake(self: Arc<Self>) {
            let _ = self.0.try_send(());
        }
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let (sender, bell) = mpsc::sync_channel(1);
        let waker = Arc::new(ChannelWaker(sender)).into();
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            bell.recv().unwrap();
        }
    }

    #[test]
    fn a_future_of_the_value() {
        let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu).unwrap();
        let sum = x.add(&x).unwrap();
        let futures: Vec<Evaluation> = (0..8).map(|_| sum.eval_async()).collect();
        for future in futures {
            assert_eq!(block_on(future).unwrap().to_vec1::<f32>().unwrap(), [2.0, 4.0]);
        }
        assert!(sum.is_evaluated());
    }

    #[test]
    fn the_future_resolves_to_the_error() {
        let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu).unwrap();
        let index = LazyTensor::from_data(&[7u32], &[1], &Device::Cpu).unwrap();
        let error = block_on(x.index_select(0, &index).unwrap().eval_async()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "IndexSelect: index 7 is out of range for a dimension of 2"
        );
    }

    /// Holds the lock on a tensor's storage until it is opened.
    struct Gate {
        shut: mpsc::SyncSender<()>,
        open: Mutex<mpsc::Receiver<()>>,
    }

    impl InplaceOp1 for Gate {
        fn name(&self) -> &'static str {
            "gate"
        }

        fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
            self.shut.send(()).unwrap();
            self.open.lock().unwrap().recv().unwrap();
            Ok(())
        }
    }

    fn is_ready<T>(evaluation: &Evaluation<T>) -> bool {
        matches!(&*lock(&evaluation.slot), Slot::Done(_))
    }

    /// The worker is in the middle of a step until the gate opens. Meanwhile this thread records the next steps,
    /// submits them, and evaluates something else.
    #[test]
    fn the_next_step_is_recorded_while_this_one_runs() {
        let memory = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let ((shut, is_shut), (open, opens)) = (mpsc::sync_channel(0), mpsc::sync_channel(0));
        let gate = Gate {
            shut,
            open: Mutex::new(opens),
        };
        thread::scope(|scope| {
            // Moved into this closure, so that the gate also opens if the test fails.
            let open = open;
            scope.spawn(|| memory.inplace_op1(&gate).unwrap());
            is_shut.recv().unwrap();
            let step = |x: &LazyTensor| {
                (0..1000)
                    .try_fold(x.clone(), |x, _| x.mul_scalar(0.5)?.add_scalar(1.0))
                    .unwrap()
            };
            let first = step(&LazyTensor::from_tensor(memory.clone()).unwrap());
            let running = first.eval_async();
            let second = step(&first);
            let both = [second.sum_all().unwrap(), second.mul_scalar(3.0).unwrap()];
            let next = eval_all_async(&both);
            let other = LazyTensor::from_slice(&[5.0], &[1], &Device::Cpu).unwrap();
            assert_eq!(step(&other).to_vec::<f32>().unwrap(), [2.0]);
            assert!(!is_ready(&running) && !is_ready(&next));
            open.send(()).unwrap();
            assert_eq!(block_on(running).unwrap().to_vec1::<f32>().unwrap(), [2.0, 2.0]);
            let values = block_on(next).unwrap();
            assert_eq!(values[0].to_scalar::<f32>().unwrap(), 4.0);
            assert_eq!(values[1].to_vec1::<f32>().unwrap(), [6.0, 6.0]);
        });
    }

    #[test]
    fn evaluations_run_in_order_and_survive_a_panic() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |i: usize| {
            let order = Arc::clone(&order);
            start(move || {
                order.lock().unwrap().push(i);
                assert_ne!(i, 2, "the third one");
                Ok(i)
            })
        };
        let evaluations: Vec<_> = (0..5).map(note).collect();
        for (i, evaluation) in evaluations.into_iter().enumerate() {
            let found = catch_unwind(AssertUnwindSafe(|| block_on(evaluation)));
            assert_eq!(found.ok().map(std::result::Result::unwrap), (i != 2).then_some(i));
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_dropped_evaluation_does_no_harm() {
        let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu).unwrap();
        drop(x.exp().unwrap().eval_async());
        assert_eq!(x.neg().unwrap().to_vec::<f32>().unwrap(), [-1.0, -2.0]);
    }
}

//! Evaluation as a future: the plan runs on a worker thread, and whoever polls is woken when the value is there. It needs
//! no particular executor and never blocks the thread that polls.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use candle_core::Tensor;

use crate::backend::{forced, with_backend};
use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// A running evaluation; resolves to the value, once. Dropping it lets the evaluation end unobserved.
#[must_use = "the value comes out of the future"]
pub struct Evaluation {
    slot: Arc<Mutex<Slot>>,
}

/// What a worker and the future share.
enum Slot {
    Running(Option<Waker>),
    /// The value, or the panic of the kernel.
    Done(thread::Result<Result<Tensor>>),
    Taken,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Every change is one assignment.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LazyTensor {
    /// Starts [`Self::eval`] on a worker thread and returns a future of the value.
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
        let slot = Arc::new(Mutex::new(Slot::Running(None)));
        let (tensor, backend, worker) = (self.clone(), forced(), Arc::clone(&slot));
        rayon::spawn(move || {
            let evaluate = || match backend {
                Some(backend) => with_backend(backend, || tensor.eval()),
                None => tensor.eval(),
            };
            let done = Slot::Done(catch_unwind(AssertUnwindSafe(evaluate)));
            // Woken outside the lock: the waker may poll at once.
            if let Slot::Running(Some(waker)) = std::mem::replace(&mut *lock(&worker), done) {
                waker.wake();
            }
        });
        Evaluation { slot }
    }
}

impl Future for Evaluation {
    type Output = Result<Tensor>;

    /// # Panics
    /// Where the kernel panicked, and when polled again after the value was taken.
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

    use candle_core::Device;

    use super::*;

    /// Parks on a channel until it is woken.
    struct Bell(mpsc::SyncSender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.try_send(());
        }
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let (sender, bell) = mpsc::sync_channel(1);
        let waker = Arc::new(Bell(sender)).into();
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
    fn an_error_comes_out_of_the_future() {
        let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu).unwrap();
        let index = LazyTensor::from_data(&[7u32], &[1], &Device::Cpu).unwrap();
        let error = block_on(x.index_select(0, &index).unwrap().eval_async()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "IndexSelect: index 7 is out of range for a dimension of 2"
        );
    }

    #[test]
    fn dropped_before_the_end_it_does_no_harm() {
        let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu).unwrap();
        drop(x.exp().unwrap().eval_async());
        assert_eq!(x.neg().unwrap().to_vec::<f32>().unwrap(), [-1.0, -2.0]);
    }
}

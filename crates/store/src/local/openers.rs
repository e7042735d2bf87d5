//! Opening many partitions with few threads. A thread of the blocking pool for each would leave dozens behind that
//! have nothing more to do, each with memory of its own (the allocator's, and a stack).
//!
//! Not here: what opening is (`local`), and how many are asked for at one time (the broker).

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, task::spawn_blocking};

#[cfg(any(test, feature = "recording"))]
use super::STEPPED;

/// Threads that open at one time: enough to keep a disk busy with look-ups.
const OPENERS_MAX: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// The threads, while there is something to open. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Openers(Arc<Mutex<Jobs>>);

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    threads: usize,
}

impl std::fmt::Debug for Openers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let jobs = self.0.lock();
        let (waiting, threads) = (jobs.waiting.len(), jobs.threads);
        f.debug_struct("Openers").field("waiting", &waiting).field("threads", &threads).finish()
    }
}

impl Openers {
    /// Does something on one of the threads. `None` if it panicked, or the runtime ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        #[cfg(any(test, feature = "recording"))]
        if STEPPED.get() {
            return Some(work());
        }
        let (answer, answered) = oneshot::channel();
        let begin = {
            let mut jobs = self.0.lock();
            jobs.waiting.push_back(Box::new(move || {
                // Whoever asked may have gone meanwhile: what is opened then would be nobody's to close.
                if !answer.is_closed() {
                    drop(answer.send(work()));
                }
            }));
            let begin = jobs.threads < OPENERS_MAX;
            jobs.threads += usize::from(begin);
            begin
        };
        if begin {
            let thread = Thread { openers: self.clone(), counted: true };
            spawn_blocking(move || thread.serve());
        }
        answered.await.ok()
    }
}

/// One of the threads, or one that is still to begin.
struct Thread {
    openers: Openers,
    counted: bool,
}

impl Thread {
    fn serve(mut self) {
        while let Some(job) = self.next() {
            // Its caller learns of a panic by the answer that does not come.
            drop(catch_unwind(AssertUnwindSafe(job)));
        }
    }

    /// With nothing to do the thread is not counted any more, at the same moment: who comes next begins another.
    fn next(&mut self) -> Option<Job> {
        let mut jobs = self.openers.0.lock();
        let job = jobs.waiting.pop_front();
        if job.is_none() {
            self.counted = false;
            jobs.threads -= 1;
        }
        job
    }
}

impl Drop for Thread {
    /// The runtime ended before the thread began: nobody serves those who wait.
    fn drop(&mut self) {
        if self.counted {
            let mut jobs = self.openers.0.lock();
            jobs.threads -= 1;
            if jobs.threads == 0 {
                jobs.waiting.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use futures::future::join_all;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn many_are_opened_by_few_threads() {
        let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let openers = Openers::default();
        let work = |number: usize| {
            let (at_once, most) = (Arc::clone(&at_once), Arc::clone(&most));
            openers.run(move || {
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                at_once.fetch_sub(1, Ordering::SeqCst);
                number
            })
        };
        for _ in 0..10 {
            let answers = join_all((0..200).map(work)).await;
            assert_eq!(answers, (0..200).map(Some).collect::<Vec<_>>());
        }
        assert!(most.load(Ordering::SeqCst) <= OPENERS_MAX);
        // The last answer comes before its thread has seen that there is nothing more.
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
        while openers.0.lock().threads > 0 {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        assert!(openers.0.lock().waiting.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_waits_for_any_more_is_not_begun() {
        let openers = Openers::default();
        let (release, released) = std::sync::mpsc::sync_channel::<()>(OPENERS_MAX);
        let released = Arc::new(Mutex::new(released));
        let held = (0..OPENERS_MAX).map(|_| {
            let released = Arc::clone(&released);
            let openers = openers.clone();
            tokio::spawn(async move { openers.run(move || released.lock().recv().is_ok()).await })
        });
        let held: Vec<_> = held.collect();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
        while openers.0.lock().threads < OPENERS_MAX || !openers.0.lock().waiting.is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "every thread has its work");
            tokio::task::yield_now().await;
        }
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let late = openers.run(move || count.fetch_add(1, Ordering::SeqCst));
        // Asked, and given up before there was a thread for it.
        assert!(futures::poll!(Box::pin(late)).is_pending());
        for _ in 0..OPENERS_MAX {
            release.send(()).expect("they wait");
        }
        for held in held {
            assert_eq!(held.await.expect("it does not panic"), Some(true));
        }
        assert_eq!(openers.run(|| 7).await, Some(7));
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_asks_while_the_runtime_ends_is_told() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (openers, ended) = (Openers::default(), runtime());
        let handle = ended.handle().clone();
        ended.shutdown_background();
        let mut asked = Box::pin(openers.run(|| 7));
        {
            let _inside = handle.enter();
            // No thread begins for it any more.
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert_eq!(asked.as_mut().poll(&mut context), std::task::Poll::Ready(None));
        }
        assert_eq!(openers.0.lock().threads, 0);
        assert_eq!(runtime().block_on(openers.run(|| 8)), Some(8));
    }

    #[tokio::test]
    async fn a_panic_is_told_and_ends_nothing_else() {
        let openers = Openers::default();
        let (failed, done) = tokio::join!(openers.run(|| panic!("on purpose")), openers.run(|| 7));
        assert_eq!((failed, done), (None::<()>, Some(7)));
        assert_eq!(openers.run(|| 8).await, Some(8));
    }
}

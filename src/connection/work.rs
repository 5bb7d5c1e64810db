//! The handlers at work on one connection: who they are, how they are stopped, and when they are done.
//!
//! Invariant: it knows no consumer and no handler. What runs handlers is a [`Job`], and is kept alive by itself.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use crate::{
    error::{Error, Result, Scope},
    sync::lock,
};

/// Something that runs handlers of the program.
pub(crate) trait Job: Send + Sync {
    /// Begins nothing new; handlers that run are let finish. Does not wait.
    fn stop(&self);

    /// Waits until no handler runs any more, except for one that the caller itself runs in; false when `deadline`
    /// came first.
    fn wait_idle(&self, deadline: Option<Instant>) -> bool;

    /// What it is and what it is doing, for people: `listener "ctag-1": 2 handlers at work`.
    fn describe(&self) -> String;
}

/// The jobs of one connection.
#[derive(Default)]
pub(crate) struct Work(Mutex<State>);

#[derive(Default)]
struct State {
    refusing: bool,
    jobs: Vec<Weak<dyn Job>>,
}

impl Work {
    /// Adds a job, until it is dropped.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`stop`](Work::stop).
    pub(crate) fn register(&self, job: Weak<dyn Job>) -> Result<()> {
        let mut state = lock(&self.0);
        if state.refusing {
            return Err(Error::Closed(Scope::Connection));
        }
        state.jobs.retain(|job| job.strong_count() > 0);
        state.jobs.push(job);
        Ok(())
    }

    /// The connection is being shut down: nothing new may begin.
    pub(crate) fn is_refusing(&self) -> bool {
        lock(&self.0).refusing
    }

    /// Takes no new jobs, and stops those that are there. Does not wait.
    pub(crate) fn stop(&self) {
        lock(&self.0).refusing = true;
        self.jobs().iter().for_each(|job| job.stop());
    }

    /// Waits until all jobs are idle, and describes those that are not at `deadline`.
    pub(crate) fn wait_idle(&self, deadline: Option<Instant>) -> Vec<String> {
        let busy = |job: &Arc<dyn Job>| !job.wait_idle(deadline);
        self.jobs().iter().filter(|job| busy(job)).map(|job| job.describe()).collect()
    }

    fn jobs(&self) -> Vec<Arc<dyn Job>> {
        lock(&self.0).jobs.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Stuck(AtomicBool);

    impl Job for Stuck {
        fn stop(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
        fn wait_idle(&self, _: Option<Instant>) -> bool {
            false
        }
        fn describe(&self) -> String {
            "stuck".into()
        }
    }

    /// Row 103: who is at work is stopped, and named when it does not finish; nobody new begins.
    #[test]
    fn jobs_are_stopped_named_and_forgotten() {
        let work = Work::default();
        let (kept, gone) = (Arc::new(Stuck::default()), Arc::new(Stuck::default()));
        let weak = |job: &Arc<Stuck>| -> Weak<dyn Job> {
            let job: Arc<dyn Job> = job.clone();
            Arc::downgrade(&job)
        };
        work.register(weak(&kept)).unwrap();
        work.register(weak(&gone)).unwrap();
        drop(gone);
        assert_eq!(work.wait_idle(None), ["stuck"]);
        work.stop();
        assert!(kept.0.load(Ordering::SeqCst));
        assert!(matches!(work.register(weak(&kept)), Err(Error::Closed(Scope::Connection))));
    }
}

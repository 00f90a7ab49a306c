//! What HTTP/2 rings when there is something to be written. While its connection is at work, it only takes note: the task
//! need not be woken to do what it is about to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// The bell of one connection.
#[derive(Debug)]
pub(super) struct Bell {
    task: Waker,
    is_at_work: AtomicBool,
    rang: AtomicBool,
}

impl Bell {
    /// Makes one for the task of this waker.
    pub(super) fn new(task: &Waker) -> Arc<Self> {
        Arc::new(Self {
            task: task.clone(),
            is_at_work: AtomicBool::new(false),
            rang: AtomicBool::new(false),
        })
    }

    /// Whether it is the task of this waker that would be woken.
    pub(super) fn wakes(&self, task: &Waker) -> bool {
        self.task.will_wake(task)
    }

    /// From now on the task is not woken.
    pub(super) fn begin_work(&self) {
        self.is_at_work.store(true, Ordering::SeqCst);
    }

    /// Whether it rang since it was asked last.
    pub(super) fn take_rang(&self) -> bool {
        self.rang.load(Ordering::Relaxed) && self.rang.swap(false, Ordering::SeqCst)
    }

    /// From now on the task is woken, and so it is if nobody asked whether it rang.
    pub(super) fn end_work(&self) {
        self.is_at_work.store(false, Ordering::SeqCst);
        // Who rang from another thread may have seen neither the end of the work nor been seen before it.
        if self.rang.swap(false, Ordering::SeqCst) {
            self.task.wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::SeqCst);
        if !self.is_at_work.load(Ordering::SeqCst) {
            self.rang.store(false, Ordering::Relaxed);
            self.task.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_task_is_woken_unless_it_is_at_work_and_sees_by_itself() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::SeqCst);
        let bell = Bell::new(&Arc::clone(&count).into());
        let waker = Waker::from(Arc::clone(&bell));
        waker.wake_by_ref();
        assert_eq!((woken(), bell.take_rang()), (1, false));
        bell.begin_work();
        waker.wake_by_ref();
        assert_eq!((woken(), bell.take_rang(), bell.take_rang()), (1, true, false));
        bell.end_work();
        assert_eq!(woken(), 1, "it has seen that it rang");
        bell.begin_work();
        waker.wake_by_ref();
        bell.end_work();
        assert_eq!(woken(), 2, "it has not");
    }
}

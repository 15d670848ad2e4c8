//! A bounded queue between threads, that takes memory for what waits in it and not for what could: the one of std makes its
//! slots at once and writes to each of them, which the idle daemon of a small board would carry along.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError, TrySendError};
use std::time::Duration;

/// At most `capacity` items wait.
#[expect(clippy::disallowed_methods, reason = "the senders count what waits, and so bound it")]
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Sender { items: sender, waiting: Arc::clone(&waiting), capacity }, Receiver { items: receiver, waiting })
}

#[derive(Debug)]
pub struct Sender<T> {
    items: mpsc::Sender<T>,
    waiting: Arc<AtomicUsize>,
    capacity: usize,
}

#[derive(Debug)]
pub struct Receiver<T> {
    items: mpsc::Receiver<T>,
    waiting: Arc<AtomicUsize>,
}

impl<T> Sender<T> {
    /// Never waits.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        // Counted before it is there, so that the receiver never counts down what was not counted up.
        if self.waiting.fetch_add(1, Relaxed) >= self.capacity {
            self.waiting.fetch_sub(1, Relaxed);
            return Err(TrySendError::Full(item));
        }
        self.items.send(item).map_err(|mpsc::SendError(item)| TrySendError::Disconnected(item))
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), waiting: Arc::clone(&self.waiting), capacity: self.capacity }
    }
}

impl<T> Receiver<T> {
    /// Waits no longer than `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.items.recv_timeout(timeout).inspect(|_| self.taken())
    }

    /// What is there already.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.items.try_recv().inspect(|_| self.taken())
    }

    fn taken(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_as_much_as_it_may_and_takes_more_when_some_is_gone() {
        let (sender, receiver) = bounded(2);
        for item in [1, 2] {
            sender.try_send(item).unwrap();
        }
        assert!(matches!(sender.clone().try_send(3), Err(TrySendError::Full(3))));
        assert_eq!(receiver.try_recv(), Ok(1));
        sender.try_send(4).unwrap();
        assert!(matches!(sender.try_send(5), Err(TrySendError::Full(5))));
        assert_eq!(receiver.recv_timeout(Duration::ZERO), Ok(2));
        assert_eq!(receiver.try_recv(), Ok(4));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn each_end_hears_that_the_other_is_gone() {
        let (sender, receiver) = bounded(1);
        drop(receiver);
        assert!(matches!(sender.try_send(1), Err(TrySendError::Disconnected(1))));
        let (sender, receiver) = bounded(1);
        sender.try_send(1).unwrap();
        drop(sender);
        assert_eq!(receiver.try_recv(), Ok(1));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    }
}

//! A bounded queue between threads, that takes memory for what waits in it and not for what could: the one of std makes its
//! slots at once and writes to each of them, which the idle daemon of a small board would carry along, and is ten times the code.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvError, RecvTimeoutError, TryRecvError, TrySendError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// At most `capacity` items wait.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let waiting = Waiting { items: VecDeque::new(), senders: 1, has_receiver: true };
    let shared = Arc::new(Shared { waiting: Mutex::new(waiting), came: Condvar::new(), capacity });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    /// An item, or the end of the last sender.
    came: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<T>,
    senders: usize,
    has_receiver: bool,
}

impl<T> Waiting<T> {
    fn is_worth_waiting(&self) -> bool {
        self.items.is_empty() && self.senders > 0
    }
}

impl<T> Shared<T> {
    /// Nobody panics while he holds it.
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    /// Never waits.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let mut waiting = self.0.lock();
        if !waiting.has_receiver {
            return Err(TrySendError::Disconnected(item));
        }
        if waiting.items.len() >= self.0.capacity {
            return Err(TrySendError::Full(item));
        }
        waiting.items.push_back(item);
        drop(waiting);
        self.0.came.notify_one();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.senders -= 1;
        if waiting.senders == 0 {
            drop(waiting);
            self.0.came.notify_one();
        }
    }
}

impl<T> Receiver<T> {
    /// Waits no longer than `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        let waited = self.0.came.wait_timeout_while(self.0.lock(), timeout, |it| it.is_worth_waiting());
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        take(&mut waiting).map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        })
    }

    /// Waits for as long as there is a sender.
    pub fn recv(&self) -> Result<T, RecvError> {
        let waited = self.0.came.wait_while(self.0.lock(), |it| it.is_worth_waiting());
        take(&mut waited.unwrap_or_else(PoisonError::into_inner)).map_err(|_| RecvError)
    }

    /// What is there already.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        take(&mut self.0.lock())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.has_receiver = false;
        // Nobody takes them any more. They are dropped without the lock: one of them may hold a sender.
        let items = std::mem::take(&mut waiting.items);
        drop(waiting);
        drop(items);
    }
}

fn take<T>(waiting: &mut Waiting<T>) -> Result<T, TryRecvError> {
    match waiting.items.pop_front() {
        Some(item) => Ok(item),
        None if waiting.senders == 0 => Err(TryRecvError::Disconnected),
        None => Err(TryRecvError::Empty),
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
    fn who_waits_is_woken() {
        let (sender, receiver) = bounded(1);
        let waits = std::thread::spawn(move || {
            let first = receiver.recv();
            (first, receiver.recv_timeout(Duration::from_secs(60)), receiver.recv())
        });
        sender.try_send(1).unwrap();
        let other = sender.clone();
        while other.try_send(2).is_err() {
            std::thread::yield_now();
        }
        drop((sender, other));
        assert_eq!(waits.join().unwrap(), (Ok(1), Ok(2), Err(RecvError)));
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

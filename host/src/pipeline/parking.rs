//! Jobs that wait in the store: those that asked to be run again later, and those of the same key behind them, so that
//! the order within a key holds. Their deliveries are acknowledged; the store has them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::message::Message;
use crate::store::ParkedId;

/// What is run in order: a function, or a function on one topic.
pub type Key = (usize, Option<Arc<str>>);

/// Finds a parked job again that has no number yet.
pub type Ticket = u64;

#[derive(Debug)]
pub struct Waiting {
    /// The store's number. `None` until the commit that parks it is on disk.
    pub id: Option<ParkedId>,
    ticket: Ticket,
    /// The number that it had and will have again.
    had: Option<ParkedId>,
    pub message: Message,
    /// `None`: as soon as what is in front of it is done.
    pub due: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct Parking {
    queues: HashMap<Key, Queue>,
    /// Parked jobs whose numbers the store has not given yet, in the order of their commits.
    unnumbered: VecDeque<Ticket>,
    /// Where those are that have no number.
    keys: HashMap<Ticket, Key>,
    last_ticket: Ticket,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Waiting>,
    /// The first job is being run.
    running: bool,
}

impl Parking {
    pub fn is_blocked(&self, key: &Key) -> bool {
        self.queues.contains_key(key)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A job that waits at the end of its key's queue. The commit that stores it is said to [`Parking::committing`].
    pub fn park(&mut self, key: Key, message: Message, due: Option<Instant>) -> Ticket {
        self.last_ticket += 1;
        self.keys.insert(self.last_ticket, key.clone());
        self.add(key, Waiting { id: None, ticket: self.last_ticket, had: None, message, due });
        self.last_ticket
    }

    /// The first job of a key asked to be run yet again. It keeps its number in the store.
    pub fn park_again(&mut self, key: Key, id: ParkedId, message: Message, due: Instant) -> Ticket {
        self.last_ticket += 1;
        self.bytes += size(&message);
        self.keys.insert(self.last_ticket, key.clone());
        let queue = self.queues.entry(key).or_default();
        queue.running = false;
        let again = Waiting { id: None, ticket: self.last_ticket, had: Some(id), message, due: Some(due) };
        queue.jobs.push_front(again);
        self.last_ticket
    }

    /// The commit that stores these goes to the store, after those of all that came here before.
    pub fn committing(&mut self, parked: Vec<Ticket>) {
        self.unnumbered.extend(parked);
    }

    /// A job that is in the store already.
    pub fn restore(&mut self, key: Key, id: ParkedId, message: Message, due: Instant) {
        self.add(key, Waiting { id: Some(id), ticket: 0, had: None, message, due: Some(due) });
    }

    fn add(&mut self, key: Key, waiting: Waiting) {
        self.bytes += size(&waiting.message);
        self.queues.entry(key).or_default().jobs.push_back(waiting);
    }

    /// The store gave the oldest unnumbered job its number.
    pub fn numbered(&mut self, id: ParkedId) {
        let Some(ticket) = self.unnumbered.pop_front() else { return };
        let Some(key) = self.keys.remove(&ticket) else { return };
        let jobs = self.queues.get_mut(&key).map(|queue| &mut queue.jobs);
        if let Some(job) = jobs.and_then(|jobs| jobs.iter_mut().find(|job| job.ticket == ticket)) {
            job.id = Some(id);
        }
    }

    /// Starts every job whose turn it is.
    pub fn start_due(&mut self, now: Instant, mut start: impl FnMut(&Key, ParkedId, &Message)) {
        for (key, queue) in &mut self.queues {
            if queue.running {
                continue;
            }
            if let Some(Waiting { id: Some(id), message, due, .. }) = queue.jobs.front()
                && due.is_none_or(|due| due <= now)
            {
                queue.running = true;
                start(key, *id, message);
            }
        }
    }

    /// The function orders its messages in another way from now on. None of its jobs is running.
    pub fn rekey(&mut self, function: usize, key_of: impl Fn(&Message) -> Key) {
        let mut jobs: Vec<Waiting> = Vec::new();
        for (_, queue) in self.queues.extract_if(|key, _| key.0 == function) {
            jobs.extend(queue.jobs);
        }
        // In the order in which the store has them, and then of those that it does not have yet.
        jobs.sort_by_key(|job| (job.id.or(job.had).map_or(u64::MAX, |id| id.0), job.ticket));
        for job in jobs {
            let key = key_of(&job.message);
            if let Some(place) = self.keys.get_mut(&job.ticket).filter(|_| job.id.is_none()) {
                place.clone_from(&key);
            }
            self.queues.entry(key).or_default().jobs.push_back(job);
        }
    }

    /// When the next job is due, if it waits for time alone.
    pub fn next_due(&self) -> Option<Instant> {
        self.queues
            .values()
            .filter(|queue| !queue.running)
            .filter_map(|queue| queue.jobs.front().filter(|job| job.id.is_some())?.due)
            .min()
    }

    /// The job that runs for this key has ended, or is parked anew by the same commit.
    pub fn finished(&mut self, key: &Key) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.running = false;
        if let Some(done) = queue.jobs.pop_front() {
            self.bytes -= size(&done.message);
        }
    }

    /// The job that runs for this key was not run after all.
    pub fn stopped(&mut self, key: &Key) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.running = false;
        }
    }

    /// Lets a key go whose queue is empty. Apart from [`Parking::finished`], because a job that is parked again must
    /// find its place in front.
    pub fn unblock(&mut self, key: &Key) {
        if self.queues.get(key).is_some_and(|queue| queue.jobs.is_empty()) {
            self.queues.remove(key);
        }
    }
}

fn size(message: &Message) -> usize {
    message.topic.len() + message.payload.len() + 64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(text: &str) -> Message {
        Message {
            topic: "t".into(),
            payload: Bytes::copy_from_slice(text.as_bytes()),
            content_type: None,
            properties: Vec::new(),
            received_at_ms: 0,
            clock_synced: true,
            attempt: 1,
        }
    }

    fn started(parking: &mut Parking, now: Instant) -> Vec<(u64, Bytes)> {
        let mut started = Vec::new();
        parking.start_due(now, |_, id, message| started.push((id.0, message.payload.clone())));
        started
    }

    #[test]
    fn a_key_waits_in_order_behind_its_retry() {
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(5);
        let key: Key = (0, Some("t".into()));
        let mut parking = Parking::default();
        let a = parking.park(key.clone(), message("a"), Some(later));
        let b = parking.park(key.clone(), message("b"), None);
        parking.committing(vec![a, b]);
        assert!(parking.is_blocked(&key) && !parking.is_blocked(&(1, None)));
        assert_eq!(started(&mut parking, later), [], "not before it is on disk");
        parking.numbered(ParkedId(1));
        parking.numbered(ParkedId(2));
        assert_eq!(parking.next_due(), Some(later));
        assert_eq!(started(&mut parking, now), []);
        assert_eq!(started(&mut parking, later), [(1, Bytes::from("a"))]);
        assert_eq!(started(&mut parking, later), [], "one at a time");
        parking.finished(&key);
        let again = parking.park_again(key.clone(), ParkedId(1), message("a2"), later);
        parking.committing(vec![again]);
        parking.unblock(&key);
        assert_eq!(started(&mut parking, later), []);
        parking.numbered(ParkedId(3));
        assert_eq!(started(&mut parking, later), [(3, Bytes::from("a2"))]);
        parking.finished(&key);
        parking.unblock(&key);
        assert_eq!(started(&mut parking, now), [(2, Bytes::from("b"))]);
        parking.finished(&key);
        parking.unblock(&key);
        assert!(!parking.is_blocked(&key));
        assert_eq!(parking.bytes(), 0);
    }

    /// Commits do not go out in the order in which jobs are parked: a message with another function waits for that.
    #[test]
    fn numbers_find_their_jobs_whatever_the_order_of_the_commits() {
        let now = Instant::now();
        let (key, other): (Key, Key) = ((0, Some("t".into())), (1, Some("t".into())));
        let mut parking = Parking::default();
        let first = parking.park(key.clone(), message("first"), Some(now));
        let elsewhere = parking.park(other.clone(), message("elsewhere"), Some(now));
        parking.committing(vec![elsewhere]);
        parking.committing(vec![first]);
        parking.numbered(ParkedId(1));
        parking.numbered(ParkedId(2));
        let mut running = started(&mut parking, now);
        running.sort_unstable();
        assert_eq!(running, [(1, Bytes::from("elsewhere")), (2, Bytes::from("first"))]);
        // One that waits behind is being stored while the one in front asks for another run.
        let behind = parking.park(key.clone(), message("behind"), None);
        parking.committing(vec![behind]);
        parking.finished(&key);
        let again = parking.park_again(key.clone(), ParkedId(2), message("again"), now);
        parking.committing(vec![again]);
        parking.numbered(ParkedId(3));
        parking.numbered(ParkedId(4));
        assert_eq!(started(&mut parking, now), [(4, Bytes::from("again"))]);
    }
}

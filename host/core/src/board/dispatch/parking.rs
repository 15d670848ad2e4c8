//! Jobs that wait in the store: those that asked to run again later, and those of the same key behind them, so that the
//! order within a key holds. Their deliveries are acknowledged; the store has them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::Key;
use crate::board::ids::FunctionNo;
use crate::message::Message;
use crate::store::ParkedId;

/// Names a parked job that the store has not numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
struct Waiting {
    /// The store's number. `None` until the commit that parks the job is on disk.
    id: Option<ParkedId>,
    ticket: Ticket,
    /// The number that the job had and will have again.
    had: Option<ParkedId>,
    message: Arc<Message>,
    /// When its unit arrived ([`Ledger::arrival`](crate::board::ledger::Ledger::arrival)). 0: before all that are under way.
    arrival: u64,
    /// `None`: as soon as the job in front of it is done.
    due: Option<Instant>,
}

/// Parked jobs of one function that run at once: the others wait in the store, not at a worker.
const MAX_STARTED: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Parking {
    queues: BTreeMap<Key, Queue>,
    functions: BTreeMap<FunctionNo, PerFunction>,
    /// Keys of the jobs without a number.
    keys: BTreeMap<Ticket, Key>,
    last_ticket: Ticket,
    last_place: u64,
    bytes: usize,
    /// A job may have come to the front that waits for nothing.
    may_be_ready: bool,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Waiting>,
    bytes: usize,
    /// The first job is being run.
    running: bool,
    /// Its place in [`PerFunction::fronts`], if the first job can be started.
    place: Option<(Option<Instant>, u64)>,
}

/// What is parked for one function.
#[derive(Debug, Default)]
struct PerFunction {
    bytes: usize,
    started: usize,
    /// Keys whose first job waits for nothing but time, or for its turn. By time, and then in the order in which they came
    /// here, so that no key waits for another for ever.
    fronts: BTreeMap<(Option<Instant>, u64), Key>,
}

impl Parking {
    pub(crate) fn is_blocked(&self, key: &Key) -> bool {
        self.queues.contains_key(key)
    }

    /// Whether all jobs of this key arrived after a unit that arrived then.
    pub(crate) fn is_behind(&self, key: &Key, arrival: u64) -> bool {
        self.queues.get(key).is_some_and(|queue| queue.jobs.iter().all(|job| job.arrival > arrival))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn bytes_of(&self, function: FunctionNo) -> usize {
        self.functions.get(&function).map_or(0, |it| it.bytes)
    }

    /// Bytes of a function's jobs behind which nothing waits for time to pass: only for those in front of them to run.
    pub(crate) fn ready_bytes_of(&self, function: FunctionNo, now: Instant) -> usize {
        let of_function = self.queues.iter().filter(|(key, _)| key.function == function).map(|(_, queue)| queue);
        let is_ready = |queue: &&Queue| {
            let front = queue.jobs.front();
            queue.running || front.is_some_and(|job| job.due.is_none_or(|due| due <= now))
        };
        of_function.filter(is_ready).map(|queue| queue.bytes).sum()
    }

    /// Adds a job at the end of its key's queue. [`Parking::numbered`] follows once its commit is on disk.
    /// `arrival`: that of its unit.
    pub(crate) fn park(&mut self, key: Key, message: Arc<Message>, arrival: u64, due: Option<Instant>) -> Ticket {
        let ticket = self.ticket(&key);
        self.add(key, Waiting { id: None, ticket, had: None, message, arrival, due });
        ticket
    }

    fn ticket(&mut self, key: &Key) -> Ticket {
        self.last_ticket.0 += 1;
        self.keys.insert(self.last_ticket, key.clone());
        self.last_ticket
    }

    /// Puts the first job of a key back in front. It keeps its number in the store.
    pub(crate) fn park_again(&mut self, key: Key, id: ParkedId, message: Arc<Message>, due: Instant) -> Ticket {
        let ticket = self.ticket(&key);
        let queue = self.count(&key, message.bytes());
        let again = Waiting { id: None, ticket, had: Some(id), message, arrival: 0, due: Some(due) };
        queue.jobs.push_front(again);
        self.front_changed(&key);
        ticket
    }

    /// Adds a job that is in the store already.
    pub(crate) fn restore(&mut self, key: Key, id: ParkedId, message: Arc<Message>, due: Instant) {
        self.add(key, Waiting { id: Some(id), ticket: Ticket(0), had: None, message, arrival: 0, due: Some(due) });
    }

    fn add(&mut self, key: Key, waiting: Waiting) {
        self.count(&key, waiting.message.bytes()).jobs.push_back(waiting);
        self.front_changed(&key);
    }

    fn count(&mut self, key: &Key, bytes: usize) -> &mut Queue {
        self.bytes += bytes;
        self.functions.entry(key.function).or_default().bytes += bytes;
        let queue = self.queues.entry(key.clone()).or_default();
        queue.bytes += bytes;
        queue
    }

    /// Another job may be first of its key, or the first one may be started now.
    fn front_changed(&mut self, key: &Key) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        let front = queue.jobs.front().filter(|job| !queue.running && job.id.is_some());
        let due = front.map(|job| job.due);
        if queue.place.map(|(at, _)| at) == due {
            return;
        }
        let parked = self.functions.entry(key.function).or_default();
        if let Some(place) = queue.place.take() {
            parked.fronts.remove(&place);
        }
        if let Some(due) = due {
            self.last_place += 1;
            queue.place = Some((due, self.last_place));
            parked.fronts.insert((due, self.last_place), key.clone());
        }
    }

    /// The commit that parked the job is on disk, under this number.
    pub(crate) fn numbered(&mut self, ticket: Ticket, id: ParkedId) {
        let key = self.keys.remove(&ticket).expect("a job is numbered once");
        let jobs = &mut self.queues.get_mut(&key).expect("a job without a number stays in its queue").jobs;
        let job = jobs.iter_mut().find(|job| job.ticket == ticket);
        job.expect("a job without a number stays in its queue").id = Some(id);
        self.front_changed(&key);
        self.may_be_ready = true;
    }

    /// Whether a job may be at the front that waits for nothing, not even time. [`Parking::start_due`] must follow.
    pub(crate) fn may_be_ready(&self) -> bool {
        self.may_be_ready
    }

    /// Something has changed that jobs may have waited for.
    pub(crate) fn wake(&mut self) {
        self.may_be_ready = true;
    }

    /// Starts the first job of every key that is due, as many of each function as may run at once. `can_run`: whether the
    /// function can. `most`: how many in all.
    pub(crate) fn start_due(
        &mut self,
        now: Instant,
        most: usize,
        can_run: impl Fn(FunctionNo) -> bool,
        mut start: impl FnMut(&Key, ParkedId, &Arc<Message>),
    ) {
        self.may_be_ready = false;
        let mut left = most;
        for (_, parked) in self.functions.iter_mut().filter(|(function, _)| can_run(**function)) {
            while parked.started < MAX_STARTED
                && let Some(entry) = parked.fronts.first_entry()
                && entry.key().0.is_none_or(|due| due <= now)
            {
                if left == 0 {
                    self.may_be_ready = true;
                    return;
                }
                left -= 1;
                let key = entry.remove();
                let queue = self.queues.get_mut(&key).expect("a key with a place has a queue");
                queue.place = None;
                queue.running = true;
                parked.started += 1;
                let first = queue.jobs.front().expect("a key with a place has a job");
                start(&key, first.id.expect("a job with a place has a number"), &first.message);
            }
        }
    }

    /// Sorts the jobs of a function into other keys: its new version orders messages differently. None of them is running.
    pub(crate) fn rekey(&mut self, function: FunctionNo, key_of: impl Fn(&Message) -> Key) {
        let mut jobs: Vec<Waiting> = Vec::new();
        for (_, queue) in self.queues.extract_if(.., |key, _| key.function == function) {
            jobs.extend(queue.jobs);
        }
        if let Some(parked) = self.functions.get_mut(&function) {
            parked.fronts.clear();
            parked.started = 0;
        }
        // In the order of the store, followed by those that the store does not have.
        jobs.sort_by_key(|job| (job.id.or(job.had).map_or(u64::MAX, |id| id.0), job.ticket));
        for job in jobs {
            let key = key_of(&job.message);
            if let Some(place) = self.keys.get_mut(&job.ticket).filter(|_| job.id.is_none()) {
                place.clone_from(&key);
            }
            let queue = self.queues.entry(key.clone()).or_default();
            queue.bytes += job.message.bytes();
            queue.jobs.push_back(job);
            self.front_changed(&key);
        }
    }

    /// When the next job is due that waits for nothing but time.
    pub(crate) fn next_due(&self, can_run: impl Fn(FunctionNo) -> bool) -> Option<Instant> {
        let waiting = self.functions.iter().filter(|(function, it)| it.started < MAX_STARTED && can_run(**function));
        waiting.filter_map(|(_, it)| it.fronts.first_key_value()?.0.0).min()
    }

    /// The running job of this key has ended, or is parked anew by the same commit.
    pub(crate) fn finished(&mut self, key: &Key) {
        let queue = self.queues.get_mut(key).expect("a started job stays in its queue");
        let done = queue.jobs.pop_front().expect("a started job stays in its queue");
        let bytes = done.message.bytes();
        queue.bytes -= bytes;
        self.bytes -= bytes;
        self.functions.get_mut(&key.function).expect("a started job is counted").bytes -= bytes;
        self.stopped(key);
    }

    /// The job that was started for this key was not run.
    pub(crate) fn not_run(&mut self, key: &Key) {
        self.stopped(key);
    }

    /// The job that was started for this key was not run, and is not before this time.
    pub(crate) fn postpone(&mut self, key: &Key, until: Instant) {
        let queue = self.queues.get_mut(key).expect("a started job stays in its queue");
        queue.jobs.front_mut().expect("a started job stays in its queue").due = Some(until);
        self.stopped(key);
    }

    fn stopped(&mut self, key: &Key) {
        let queue = self.queues.get_mut(key).expect("a started job stays in its queue");
        if std::mem::take(&mut queue.running) {
            self.functions.get_mut(&key.function).expect("a started job is counted").started -= 1;
        }
        self.front_changed(key);
        self.may_be_ready = true;
    }

    /// Removes a key whose queue is empty. Not part of [`Parking::finished`]: a job that is parked again needs its place.
    pub(crate) fn unblock(&mut self, key: &Key) {
        if self.queues.get(key).is_some_and(|queue| queue.jobs.is_empty()) {
            self.queues.remove(key);
        }
        if self.functions.get(&key.function).is_some_and(|it| it.bytes == 0 && it.started == 0 && it.fronts.is_empty())
        {
            self.functions.remove(&key.function);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn key(function: u32) -> Key {
        Key { function: FunctionNo(function), topic: Some("t".into()) }
    }

    fn message(text: &str) -> Arc<Message> {
        Arc::new(Message::new("t", Bytes::copy_from_slice(text.as_bytes()), 0, true))
    }

    fn started(parking: &mut Parking, now: Instant) -> Vec<(u64, Bytes)> {
        let mut started = Vec::new();
        parking.start_due(now, usize::MAX, |_| true, |_, id, message| started.push((id.0, message.payload.clone())));
        started
    }

    #[test]
    fn a_key_waits_in_order_behind_its_retry() {
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(5);
        let (key, other) = (key(0), key(1));
        let mut parking = Parking::default();
        let a = parking.park(key.clone(), message("a"), 5, Some(later));
        let b = parking.park(key.clone(), message("b"), 6, None);
        assert!(parking.is_blocked(&key) && !parking.is_blocked(&other));
        assert!(parking.is_behind(&key, 4) && !parking.is_behind(&key, 6));
        assert_eq!(started(&mut parking, later), [], "not before it is on disk");
        parking.numbered(a, ParkedId(1));
        parking.numbered(b, ParkedId(2));
        assert_eq!(parking.next_due(|_| true), Some(later));
        assert_eq!(started(&mut parking, now), []);
        assert_eq!(started(&mut parking, later), [(1, Bytes::from("a"))]);
        assert_eq!(started(&mut parking, later), [], "one at a time");
        parking.finished(&key);
        let again = parking.park_again(key.clone(), ParkedId(1), message("a2"), later);
        parking.unblock(&key);
        assert_eq!(started(&mut parking, later), []);
        parking.numbered(again, ParkedId(3));
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
        let (key, other) = (key(0), key(1));
        let mut parking = Parking::default();
        let first = parking.park(key.clone(), message("first"), 1, Some(now));
        let elsewhere = parking.park(other.clone(), message("elsewhere"), 2, Some(now));
        parking.numbered(elsewhere, ParkedId(1));
        parking.numbered(first, ParkedId(2));
        let mut running = started(&mut parking, now);
        running.sort_unstable();
        assert_eq!(running, [(1, Bytes::from("elsewhere")), (2, Bytes::from("first"))]);
        // One that waits behind is being stored while the one in front asks for another run.
        let behind = parking.park(key.clone(), message("behind"), 3, None);
        parking.finished(&key);
        let again = parking.park_again(key.clone(), ParkedId(2), message("again"), now);
        parking.numbered(behind, ParkedId(3));
        parking.numbered(again, ParkedId(4));
        assert_eq!(started(&mut parking, now), [(4, Bytes::from("again"))]);
    }
}

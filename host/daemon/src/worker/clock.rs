//! Deadline clock of a worker: a thread that advances the engine's epochs while jobs run.
//!
//! It waits on a timer that is armed for a batch of jobs and disarmed when the batch is over. A batch that ends within one
//! epoch, as nearly all do, never wakes the thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

use sedge_sandbox::{EPOCH, Ticker};

/// One clock for each worker, cloned into the worker.
#[derive(Clone)]
pub struct Clock {
    shared: Arc<ClockShared>,
}

struct ClockShared {
    timer: OwnedFd,
    /// CPU time of the process when the timer was last armed, in nanoseconds.
    armed_at_cpu_ns: AtomicU64,
    ended: AtomicBool,
    ticker: Mutex<Option<Ticker>>,
}

impl Clock {
    /// Starts the thread. A worker process calls this before it enters its sandbox, which forbids new threads.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(ClockShared {
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
            armed_at_cpu_ns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            ticker: Mutex::new(None),
        });
        std::thread::Builder::new().name("sedge-clock".into()).stack_size(64 * 1024).spawn({
            let shared = Arc::clone(&shared);
            move || shared.tick()
        })?;
        Ok(Self { shared })
    }

    /// The descriptor that a sandboxed worker reads and sets.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.shared.timer.as_fd()
    }

    /// Sets the engines whose deadlines are kept.
    pub(crate) fn watch(&self, ticker: Ticker) {
        *self.shared.ticker.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticker);
    }

    /// Begins to count deadlines, before the first job of a batch.
    pub(crate) fn arm(&self) {
        self.shared.armed_at_cpu_ns.store(cpu_ns(), Ordering::Release);
        self.set(EPOCH);
    }

    /// Stops counting, once no job runs.
    pub(crate) fn disarm(&self) {
        self.set(Duration::ZERO);
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        self.shared.ended.store(true, Ordering::Release);
        self.set(EPOCH);
    }

    fn set(&self, interval: Duration) {
        let interval = Timespec { tv_sec: 0, tv_nsec: interval.subsec_nanos().into() };
        let timer = Itimerspec { it_interval: interval, it_value: interval };
        // Nothing to do about an error: the fuel of a job still ends it.
        if let Err(error) = timerfd_settime(&self.shared.timer, TimerfdTimerFlags::empty(), &timer) {
            tracing::error!(%error, "failed to set the deadline clock");
        }
    }
}

impl ClockShared {
    fn tick(&self) {
        let mut counted = CpuCount::default();
        let mut expirations = [0; 8];
        loop {
            match rustix::io::read(&self.timer, &mut expirations) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return tracing::error!(%error, "failed to read the deadline clock"),
            }
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            let passed = EPOCH.saturating_mul(u64::from_ne_bytes(expirations).try_into().unwrap_or(u32::MAX));
            let epochs = counted.epochs(passed, self.armed_at_cpu_ns.load(Ordering::Acquire), cpu_ns());
            if let Some(ticker) = &*self.ticker.lock().unwrap_or_else(PoisonError::into_inner) {
                (0..epochs).for_each(|_| ticker.tick());
            }
        }
    }
}

/// Longest time between two wake-ups that counts in full.
const ON_TIME: Duration = EPOCH.saturating_mul(4);

/// Counts the epochs that jobs have run. Deadlines count CPU time: on a busy board, time spent waiting for a CPU would fail
/// innocent messages. Waiting counts a tenth, so that nothing runs for ever. So does time in which this thread was not woken
/// either: the whole machine stood still, and a virtual machine counts such time as CPU time.
#[derive(Default)]
struct CpuCount {
    /// CPU time up to which it is counted, in nanoseconds.
    until_cpu_ns: u64,
    /// Counted and less than an epoch.
    rest: Duration,
}

impl CpuCount {
    fn epochs(&mut self, passed: Duration, armed_at_cpu_ns: u64, now_cpu_ns: u64) -> u32 {
        let since = self.until_cpu_ns.max(armed_at_cpu_ns);
        self.until_cpu_ns = now_cpu_ns;
        let ran = Duration::from_nanos(now_cpu_ns.saturating_sub(since)).min(ON_TIME);
        self.rest += ran.clamp(passed / 10, passed);
        let epochs = self.rest.as_nanos() / EPOCH.as_nanos();
        self.rest -= EPOCH.saturating_mul(epochs.try_into().unwrap_or(u32::MAX));
        epochs.try_into().unwrap_or(u32::MAX)
    }
}

/// CPU time of this process in nanoseconds. With `isolate = "process"` nearly all of it is the function's.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    (time.tv_sec.unsigned_abs() * 1_000_000_000).saturating_add(time.tv_nsec.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_clock_does_not_tick() {
        let clock = Clock::start().unwrap();
        clock.arm();
        clock.disarm();
        assert_eq!(rustix::time::timerfd_gettime(&clock.shared.timer).unwrap().it_value.tv_nsec, 0);
        clock.end();
    }

    #[test]
    fn waiting_for_a_processor_counts_a_tenth() {
        let mut counted = CpuCount::default();
        let ms = |ms: u64| ms * 1_000_000;
        assert_eq!(counted.epochs(EPOCH, ms(100), ms(105)), 1, "ran for the whole epoch");
        let waited: u32 = (0..10).map(|_| counted.epochs(EPOCH, ms(100), ms(105))).sum();
        assert_eq!(waited, 1);
        // Time before the timer was armed is not the job's.
        assert_eq!(counted.epochs(EPOCH, ms(200), ms(201)), 0);
        assert_eq!(counted.epochs(EPOCH * 3, ms(200), ms(220)), 3, "other threads cannot make a job late");
    }

    #[test]
    fn a_machine_that_stood_still_fails_no_message() {
        let mut counted = CpuCount::default();
        let ms = |ms: u64| ms * 1_000_000;
        assert_eq!(counted.epochs(EPOCH * 40, ms(100), ms(300)), 4, "200 ms count as 20");
        assert_eq!(
            counted.epochs(EPOCH * 4, ms(100), ms(320)),
            4,
            "a thread that is woken a little late counts in full"
        );
        assert_eq!(counted.epochs(EPOCH * 1000, ms(100), ms(5320)), 100, "nothing runs for ever");
    }
}

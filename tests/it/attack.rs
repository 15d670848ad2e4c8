//! Attacks on the board's memory, disk, processor time and log, each beside a victim with 20 messages per second.
//!
//! The daemon has 256 MiB of data (RLIMIT_DATA), a store of 16 MiB, and must not end. The victim loses nothing, its results are
//! right, and it does not wait. `make attack` runs each attack for longer, and prints a table.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, Setup, board_program};
use crate::harness::guest::{guest, variant};
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::process;
use crate::harness::wire::{Hello, Publish};
use crate::harness::{eventually, patiently};

/// Private memory of each process of the board.
const DATA_KIB: u64 = 256 << 10;
/// `store.max_bytes`, `dead_letter_max_bytes`, `parked_max_bytes` and `state_max_bytes` of the board, each.
const STORE_BYTES: u64 = 16 << 20;
/// The four parts of the store, twice for pages that are free or half full, the log, and one commit.
const DISK_BYTES: u64 = 2 * 4 * STORE_BYTES + (32 << 20);
/// Longest wait of the victim for 99 of 100 messages, where it waits less than a fifth of it without an attack.
const WAIT: Duration = Duration::from_secs(1);

/// What an attack has at hand. The function `attack` hears `attack/#`, under the default limits.
struct Scene<'a> {
    client: Client,
    broker: &'a Mosquitto,
    /// Process of upstream's broker.
    upstream: Pid,
    http_port: u16,
    until: Instant,
    sent: usize,
}

impl Scene<'_> {
    /// Publishes what the closure makes of 0, 1, 2, ..., up to 400 per second and `most` in all, until the attack ends.
    fn flood(&mut self, most: usize, make: impl Fn(usize) -> Publish) {
        let begun = Instant::now();
        while self.sent < most && Instant::now() < self.until {
            let due = begun + Duration::from_millis(50) * u32::try_from(self.sent / 20).expect("not so many");
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let batch = (self.sent..most.min(self.sent + 20)).map(&make);
            self.client.publish_all(batch.collect::<Vec<_>>()).expect("publish the attack");
            self.sent = most.min(self.sent + 20);
        }
    }

    fn rest(&self) {
        std::thread::sleep(self.until.saturating_duration_since(Instant::now()));
    }
}

/// Runs the attack and checks its effect on the board and on the victim, which must not wait.
#[track_caller]
fn attack(name: &str, change: impl FnOnce(Setup, &Path) -> Setup, act: impl FnOnce(&mut Scene<'_>)) -> Daemon {
    let (daemon, alone, during) = survive(name, change, act);
    if alone < patiently(WAIT / 5) {
        assert!(during < patiently(WAIT), "{name}: the victim waits {during:?}");
    } else {
        println!("{name}: the machine is too busy to measure waiting: {alone:?} without an attack");
    }
    daemon
}

/// Runs the attack and checks that the board and the victim survive. Returns how long the victim waits at most for 99 of 100
/// messages, without the attack and during it.
#[track_caller]
fn survive(
    name: &str,
    change: impl FnOnce(Setup, &Path) -> Setup,
    act: impl FnOnce(&mut Scene<'_>),
) -> (Daemon, Duration, Duration) {
    let seconds = std::env::var("SEDGE_ATTACK_SECONDS").map_or(3, |text| text.parse().expect("a number of seconds"));
    let (folder, broker, cloud) = (tempfile::tempdir().expect("make a folder"), Mosquitto::start(), Mosquitto::start());
    let mut setup = Setup::new(broker.url()).upstream(cloud.url()).set("upstream", "topic_prefix = \"up/\"");
    for part in ["max_bytes", "dead_letter_max_bytes", "parked_max_bytes"] {
        setup = setup.set("store", format!("{part} = {STORE_BYTES}"));
    }
    let setup = change(setup.function(&guest("count")).function(&guest("attack")), folder.path());
    let mut daemon = Daemon::prepare(&setup);
    let mut command = Command::new("sh");
    let limited = format!("ulimit -d {DATA_KIB} && exec \"$@\"");
    command.args(["-c", &limited, "sh"]).arg(board_program()).arg("run").arg("--config").arg(daemon.config());
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(60));
    for filter in ["count/#", "attack/#"] {
        broker.await_subscription(filter, 1);
    }
    let pid = daemon.pid();

    let victim = Victim::start(broker.port, cloud.port);
    std::thread::sleep(Duration::from_secs(2));
    let alone = victim.waits(Duration::ZERO);
    let begun = victim.begun.elapsed();
    let until = Instant::now() + Duration::from_secs(seconds);
    let upstream = Pid::from_raw(cloud.pid().cast_signed()).expect("upstream is not process 0");
    let (client, http_port) = (broker.client("attacker"), daemon.http_port);
    let mut scene = Scene { client, broker: &broker, upstream, http_port, until, sent: 0 };
    let mut memory = 0;
    let mut disk = 0;
    let mut complete = false;
    let watched = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = (0, 0);
            while watched.load(Ordering::Relaxed) {
                most = (most.0.max(process::anonymous_kb(pid)), most.1.max(folder_bytes(&daemon.data())));
                std::thread::sleep(Duration::from_millis(50));
            }
            most
        });
        act(&mut scene);
        scene.rest();
        victim.stop();
        complete = victim.complete(Duration::from_secs(60));
        watched.store(false, Ordering::Relaxed);
        (memory, disk) = watch.join().expect("the watch does not fail");
    });
    assert!(daemon.is_running(), "{name}: the daemon ended");
    assert_eq!(victim.times.lock().expect("no panic").wrong, None, "{name}: a result of the victim is wrong");
    assert!(complete, "{name}: the victim's messages do not come upstream: {}", victim.missing());
    assert_eq!(daemon.pid(), pid);
    let during = victim.waits(begun);
    let figure = |waits: &[Duration]| percentile(waits, 99).as_secs_f64() * 1000.0;
    println!(
        "| {name} | {} | {} | {:.1} | {:.0} | {:.0} | {:.0} |",
        scene.sent,
        memory / 1024,
        disk as f64 / f64::from(1 << 20),
        figure(&alone),
        percentile(&during, 50).as_secs_f64() * 1000.0,
        figure(&during),
    );
    assert!(disk <= DISK_BYTES, "{name}: {disk} bytes on disk, {DISK_BYTES} are permitted");
    (daemon, percentile(&alone, 99), percentile(&during, 99))
}

/// Twenty messages per second to `count`, and when their records came upstream.
struct Victim {
    begun: Instant,
    stop: Arc<AtomicBool>,
    sender: Mutex<Option<JoinHandle<Ledger>>>,
    /// When each message was sent, and when its record came, by its number.
    times: Arc<Mutex<Times>>,
}

#[derive(Default)]
struct Times {
    sent: Vec<Duration>,
    came: Vec<Option<Duration>>,
    wrong: Option<String>,
}

impl Victim {
    fn start(broker: u16, cloud: u16) -> Self {
        let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let times = Arc::new(Mutex::new(Times::default()));
        let mut receiver = Client::connect(cloud, &Hello::new("receiver")).expect("connect the receiver");
        receiver.subscribe(&["up/count/victim"]).expect("subscribe the receiver");
        let seen = Arc::clone(&times);
        std::thread::spawn(move || {
            while let Ok(message) = receiver.receive(Duration::from_secs(60)) {
                let Some(message) = message else { continue };
                seen.lock().expect("no panic").arrived(&message.text(), begun.elapsed());
            }
        });
        let (ended, sent) = (Arc::clone(&stop), Arc::clone(&times));
        let sender = std::thread::spawn(move || {
            let mut client = Client::connect(broker, &Hello::new("sensor")).expect("connect the sensor");
            let mut ledger = Ledger::default();
            while !ended.load(Ordering::Relaxed) {
                let message = ledger.next("victim");
                sent.lock().expect("no panic").sent.push(begun.elapsed());
                client.publish(message).expect("publish");
                let next = begun + Duration::from_millis(50) * u32::try_from(ledger.total()).expect("not so many");
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            ledger
        });
        Self { begun, stop, sender: Mutex::new(Some(sender)), times }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.sender.lock().expect("no panic").take();
        sender.expect("stopped once").join().expect("the sensor does not fail");
    }

    /// Waits until every message has its record, or one is wrong. Returns whether it came to that.
    fn complete(&self, patience: Duration) -> bool {
        eventually(patience, || {
            let times = self.times.lock().expect("no panic");
            times.came.iter().flatten().count() == times.sent.len() || times.wrong.is_some()
        })
    }

    fn missing(&self) -> String {
        let times = self.times.lock().expect("no panic");
        format!("{} of {} came", times.came.iter().flatten().count(), times.sent.len())
    }

    /// Times from publishing to the record upstream, of messages sent after `begin`, in ascending order.
    fn waits(&self, begin: Duration) -> Vec<Duration> {
        let times = self.times.lock().expect("no panic");
        let pairs = times.sent.iter().zip(&times.came);
        let mut waits: Vec<Duration> = pairs
            .filter(|(sent, _)| **sent >= begin)
            .filter_map(|(sent, came)| Some(came.as_ref()?.saturating_sub(*sent)))
            .collect();
        waits.sort_unstable();
        waits
    }
}

impl Times {
    fn arrived(&mut self, text: &str, now: Duration) {
        let numbers =
            text.split_once(' ').and_then(|(a, b)| Some((a.parse::<usize>().ok()?, b.parse::<usize>().ok()?)));
        let Some((number, count)) = numbers else {
            self.wrong.get_or_insert(format!("{text:?} is not a record of `count`"));
            return;
        };
        if number != count || number == 0 || number > self.sent.len() {
            self.wrong.get_or_insert(format!("message {number} was counted as {count}"));
            return;
        }
        self.came.resize(self.came.len().max(number), None);
        // A repeat of a record after a reconnect is allowed.
        self.came[number - 1].get_or_insert(now);
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

fn on(topic: usize, payload: impl Into<Vec<u8>>) -> Publish {
    Publish::new(&format!("attack/{topic}"), payload)
}

/// A name of this number of bytes, as deep as Mosquitto permits.
fn long_topic(bytes: usize, number: usize) -> String {
    format!("attack/{number:06}/{}", "t".repeat(bytes))
}

#[test]
#[ignore = "takes minutes: make attack"]
fn outputs_that_grow_when_they_are_recorded() {
    attack(
        "alerts of 64 KiB of control characters",
        |setup, _| setup,
        |scene| {
            scene.flood(3000, |n| on(n % 8, format!("alert 65000 {n}")));
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn the_largest_outputs_that_the_board_permits() {
    let large = |setup: Setup, folder: &Path| {
        let limits = "\n[limits]\noutput_bytes = 1_048_576\nfuel = 100_000_000\ntimeout_ms = 1_000\n";
        let copy = variant(&guest("attack"), folder, "large", "attack/large/#", |manifest| manifest + limits);
        setup.function(&copy)
    };
    // Upstream takes nothing meanwhile, so the victim waits.
    let (daemon, ..) = survive("forwards of 1 MB", large, |scene| {
        kill_process(scene.upstream, Signal::STOP).expect("stop upstream");
        scene.flood(400, |n| Publish::new(&format!("attack/large/{}", n % 8), "forward 1000000"));
        scene.rest();
        kill_process(scene.upstream, Signal::CONT).expect("continue upstream");
    });
    let dropped = daemon.metric_with("sedge_dropped_total", "reason=\"full\"");
    println!("{dropped} of the forwards are dropped");
    assert!(dropped > 0.0, "{}", daemon.counters());
}

#[test]
#[ignore = "takes minutes: make attack"]
fn messages_that_are_nothing_but_properties() {
    // To the victim's own function: other topics of it are not paused.
    attack(
        "25 messages with 120,000 empty properties",
        |setup, _| setup,
        |scene| {
            scene.flood(25, |_| {
                let properties = vec![(String::new(), String::new()); 120_000];
                Publish { properties, ..Publish::new("count/evil", "1") }
            });
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn properties_that_wait_for_a_slow_function() {
    let slow = |setup: Setup, folder: &Path| {
        let limits = "\n[limits]\nfuel = 10_000_000_000\ntimeout_ms = 3_000\n";
        let copy = variant(&guest("attack"), folder, "slow", "slow/#", |manifest| manifest + limits);
        setup.function(&copy).set("functions", "max_timeout_ms = 10_000").set("functions", "max_fuel = 10_000_000_000")
    };
    attack("200 KB of properties to a slow function", slow, |scene| {
        scene.flood(300, |n| {
            let large = "p".repeat(50_000);
            let properties = (0..4).map(|index| (format!("p{index}"), large.clone())).collect();
            Publish { properties, ..Publish::new(&format!("slow/{}", n % 8), "spin 300") }
        });
    });
}

#[test]
#[ignore = "takes minutes: make attack"]
fn long_topics_with_state() {
    attack(
        "topics of 60,000 bytes",
        |setup, _| setup,
        |scene| {
            scene.flood(2000, |n| Publish::new(&long_topic(60_000, n), "state 1"));
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn many_topics_with_much_state() {
    attack(
        "60,000 bytes of state per topic",
        |setup, _| setup,
        |scene| {
            scene.flood(2000, |n| on(n, "state 60000"));
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn a_function_that_computes_for_long() {
    let slow = |setup: Setup, folder: &Path| {
        let limits = "\n[limits]\nfuel = 10_000_000_000\ntimeout_ms = 5_000\n";
        let copy = variant(&guest("attack"), folder, "slow", "slow/#", |manifest| manifest + limits);
        setup.function(&copy).set("functions", "max_timeout_ms = 10_000").set("functions", "max_fuel = 10_000_000_000")
    };
    attack("4 long runs per second", slow, |scene| {
        while Instant::now() < scene.until {
            let topic = format!("slow/{}", scene.sent % 8);
            scene.client.publish(Publish::new(&topic, "spin 500")).expect("publish");
            scene.sent += 1;
            std::thread::sleep(Duration::from_millis(250));
        }
    });
}

#[test]
#[ignore = "takes minutes: make attack"]
fn functions_that_call_each_other_with_64_publications() {
    let echo = |setup: Setup, folder: &Path| {
        let publish = |manifest: String| manifest.replace("publish = [\"echo/#\"]", "publish = [\"attack/#\"]");
        setup.function(&variant(&guest("attack"), folder, "echo", "echo/#", publish))
    };
    attack("64 publications to each other", echo, |scene| scene.flood(1, |n| on(n, "fan 64")));
}

#[test]
#[ignore = "takes minutes: make attack"]
fn alert_keys_that_are_never_the_same() {
    attack(
        "alert keys of 60,000 bytes",
        |setup, _| setup,
        |scene| {
            scene.flood(3000, |n| on(n % 8, format!("key 60000 {n}")));
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn a_function_that_fills_the_log() {
    let daemon = attack(
        "32 log lines per run",
        |setup, _| setup,
        |scene| {
            scene.flood(20_000, |n| on(n % 8, "log 32"));
        },
    );
    let bytes = daemon.log().len();
    assert!(bytes < 1 << 20, "{bytes} bytes of log");
}

#[test]
#[ignore = "takes minutes: make attack"]
fn dead_letters_without_room() {
    let full = |setup: Setup, _: &Path| setup.set("store", "dead_letter_max_bytes = 65_536");
    let daemon = attack("dead letters beyond their bound", full, |scene| {
        scene.flood(3000, |n| on(n % 8, "fan 1000"));
    });
    let bytes = daemon.log().len();
    assert!(bytes < 1 << 20, "{bytes} bytes of log");
}

#[test]
#[ignore = "takes minutes: make attack"]
fn half_sent_requests_on_the_http_port() {
    attack(
        "half-sent HTTP requests",
        |setup, _| setup,
        |scene| {
            let mut held = Vec::new();
            let port = (Ipv4Addr::LOCALHOST, scene.http_port).into();
            while held.len() < 1100 && Instant::now() < scene.until {
                let Ok(mut stream) = TcpStream::connect_timeout(&port, Duration::from_millis(100)) else { break };
                drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: "));
                held.push(stream);
            }
            scene.sent = held.len();
            scene.rest();
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn a_flood_of_qos_0() {
    // Mosquitto sends what it has queued for a session in order, so the victim's messages wait behind the flood.
    survive(
        "200,000 messages of QoS 0",
        |setup, _| setup,
        |scene| {
            let (mut stream, _) = scene.broker.client("flood").into_parts();
            let mut bytes = Vec::new();
            (0..1000).for_each(|n| Publish { qos: 0, ..on(n % 8, "nothing") }.encode(&mut bytes));
            while scene.sent < 200_000 && Instant::now() < scene.until {
                stream.write_all(&bytes).expect("publish the flood");
                scene.sent += 1000;
            }
        },
    );
}

#[test]
#[ignore = "takes minutes: make attack"]
fn orders_that_are_noise() {
    let daemon = attack(
        "noise instead of orders",
        |setup, _| setup,
        |scene| {
            scene.flood(3000, |n| {
                let noise =
                    format!("{{\"payload\":\"{n}\",\"signatures\":[{{\"keyid\":\"\\n<3>forged\\u001b[2J\"}}]}}");
                Publish::new(&format!("sedge/board/deploy/f{}", n % 200), noise)
            });
        },
    );
    let log = daemon.log();
    assert!(log.len() < 1 << 20, "{} bytes of log", log.len());
    assert!(!log.contains("\n<3>forged") && !log.contains('\u{1b}'), "a stranger writes lines into the log");
}

//! Small boards: little address space, little memory. Sedge must fit where Wasmtime's default reservations do not (the tests of
//! the sandbox show that).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::cgroup::MemoryCgroup;
use crate::harness::daemon::{Daemon, SEDGE, Setup, board_program};
use crate::harness::eventually;
use crate::harness::guest::{example, guest, variant};
use crate::harness::ledger::Ledger;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::traffic::Traffic;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;

/// Argument of `ulimit -v`, in KiB: far less than the 512 GiB of addresses of a 64-bit board.
const ADDRESSES_KB: u64 = 600_000;
const MEMORY_BYTES: u64 = 48 << 20;
/// Daemon and worker have 7 MB of private memory, and a compilation needs another 7 MB.
const TOO_LITTLE_TO_COMPILE_BYTES: u64 = 10 << 20;

#[track_caller]
fn serves(daemon: &Daemon, broker: &Mosquitto, upstream: &Upstream) {
    broker.await_daemon();
    let mut sensors = broker.client("sensors");
    let mut ledger = Ledger::default();
    sensors.publish_all(ledger.batch(5, 500)).expect("publish");
    let done = eventually(Duration::from_secs(60), || ledger.is_complete(&upstream.received()));
    assert!(done, "{}\n{}", daemon.counters(), daemon.log());
    ledger.check(&upstream.received());
}

#[test]
fn little_address_space_is_enough_to_start_compile_and_serve() {
    let broker = Mosquitto::start();
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&guest("count"));
    let mut daemon = Daemon::prepare(&setup);
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -v "$1" && shift && exec "$@""#, "sh", &ADDRESSES_KB.to_string()]);
    command.arg(board_program()).args(["run", "--config"]).arg(daemon.config());
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(60));
    serves(&daemon, &broker, &upstream);
}

/// An aarch64 board with 39 bits of virtual addresses. Only an emulator can be configured so; natively the test above covers it.
#[test]
fn it_serves_with_39_bits_of_addresses() {
    // The fifth byte of an ELF file is its class, 32 or 64 bits.
    if std::fs::read(board_program()).expect("read the program").get(4) == Some(&1) {
        println!("{} has 32 bits of addresses", board_program().display());
        return;
    }
    let broker = Mosquitto::start();
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    // Does not reach the emulator of worker processes, since workers inherit no environment.
    let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&guest("count"));
    let mut daemon = Daemon::prepare(&setup.set("worker", "isolate = \"thread\""));
    let mut command = Command::new(board_program());
    command.args(["run", "--config"]).arg(daemon.config()).env("QEMU_RESERVED_VA", "0x8000000000");
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(60));
    serves(&daemon, &broker, &upstream);
}

/// A board with 48 MB of memory besides the kernel's.
#[test]
fn three_functions_run_under_load_in_48_megabytes() {
    let Some(cgroup) = MemoryCgroup::create(MEMORY_BYTES) else { return };
    let broker = Mosquitto::start();
    let cloud = Mosquitto::start();
    let upstream = Upstream::collect(cloud.port);
    let setup = Setup::new(broker.url()).upstream(cloud.url()).set("worker", "count = 1");
    let setup = setup.function(&guest("count")).function(&example("threshold-alert")).function(&example("anomaly"));
    let mut daemon = Daemon::prepare(&setup);
    // The three functions are compiled there, too.
    let mut command = cgroup.command(&board_program());
    command.args(["run", "--config"]).arg(daemon.config());
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(60));
    broker.await_daemon();
    let traffic = Traffic::start_at(broker.port, 20, 1000);
    let mut house = broker.client("house");
    let mut reading = 0_u32;
    let goal = || upstream.count() >= 4000;
    let busy = eventually(Duration::from_secs(60), || {
        reading += 1;
        house.publish(Publish::new("sensors/attic/temperature", format!("{}", 60 + reading % 40))).unwrap();
        goal()
    });
    let ledger = traffic.stop();
    assert!(busy, "{}\n{}", daemon.counters(), daemon.log());
    let done = eventually(Duration::from_secs(60), || ledger.is_complete(&upstream.received()));
    assert!(done, "{}\n{}", daemon.counters(), daemon.log());
    let counted: Vec<Publish> = upstream.received().into_iter().filter(is_of_count).collect();
    ledger.check(&counted);
    assert_eq!(cgroup.kills(), 0, "{}", daemon.log());
    assert_eq!(daemon.metric("sedge_dead_letters_total"), 0.0, "{}", daemon.counters());
    println!("{} KiB of its own", cgroup.anonymous_kb());
}

/// The ledger knows the alerts of `count` and of no other function.
fn is_of_count(message: &Publish) -> bool {
    !message.topic.contains("/alerts/") || message.topic.ends_with("/alerts/count")
}

#[test]
fn a_module_too_large_to_compile_is_refused_with_the_reason_and_the_daemon_continues() {
    let Some(cgroup) = MemoryCgroup::create(TOO_LITTLE_TO_COMPILE_BYTES) else { return };
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(broker.url()).set("worker", "count = 1").function(&guest("count"));
    let mut daemon = Daemon::prepare(&setup);
    daemon.resume();
    daemon.terminate();
    // A function that this board has never compiled.
    let other = variant(&example("anomaly"), folder.path(), "other", "other/#", |manifest| manifest);
    let config = std::fs::read_to_string(daemon.config()).unwrap();
    let both = config.replace("[functions]\npaths = [", &format!("[functions]\npaths = [{other:?}, "));
    assert_ne!(config, both);
    std::fs::write(daemon.config(), both).unwrap();
    let mut command = cgroup.command(&board_program());
    command.args(["run", "--config"]).arg(daemon.config());
    daemon.launch_as(command);
    daemon.wait_ready(Duration::from_secs(60));
    assert!(cgroup.kills() > 0, "compiling fits, so nothing is tested: {}", daemon.log());
    assert!(daemon.log().contains("the kernel killed the compiler"), "{}", daemon.log());
    broker.await_daemon();
    broker.client("sensor").publish(Publish::new("count/a", "1")).unwrap();
    let served = eventually(Duration::from_secs(30), || {
        daemon.metric_with("sedge_function_invocations_total", "function=\"count\"") == 1.0
    });
    assert!(served, "the function beside it is served: {}", daemon.counters());
}

/// `MemoryDenyWriteExecute=yes` of the unit, by the kernel's own option (since 6.3), which children inherit.
fn without_new_code(program: &Path) -> Command {
    let mut command = Command::new("perl");
    // PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    command.args(["-e", r#"syscall(157, 65, 1, 0, 0, 0) == 0 or exit 99; exec @ARGV"#]).arg(program);
    command
}

#[test]
#[cfg(target_arch = "x86_64")]
fn it_serves_where_memory_that_was_written_is_never_executed() {
    let this = Path::new(SEDGE);
    let allowed = without_new_code(this).arg("--version").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this kernel, older than 6.3, cannot be asked for it, or there is no perl");
        return;
    }
    // `sedge invoke` makes code in memory, so this shows that the kernel refuses it.
    let count = guest("count");
    let by_hand = without_new_code(this).arg("invoke").arg(&count).args(["-t", "count/a", "-p", "1"]).output().unwrap();
    assert!(!by_hand.status.success(), "{}", String::from_utf8_lossy(&by_hand.stdout));

    for isolate in ["process", "thread"] {
        let broker = Mosquitto::start();
        let cloud = Mosquitto::start();
        let upstream = Upstream::collect(cloud.port);
        let setup = Setup::new(broker.url()).upstream(cloud.url()).function(&count);
        let mut daemon = Daemon::prepare_program(this.into(), &setup.set("worker", format!("isolate = {isolate:?}")));
        let mut command = without_new_code(this);
        command.args(["run", "--config"]).arg(daemon.config());
        daemon.launch_as(command);
        daemon.wait_ready(Duration::from_secs(60));
        serves(&daemon, &broker, &upstream);
    }
}

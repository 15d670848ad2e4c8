//! How late schedules run on a board under load.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Size;
use crate::durable::reading;
use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::guest;
use crate::harness::mosquitto::Mosquitto;
use crate::harness::wire::{Hello, Publish};
use crate::load::paced;
use crate::report::{Goal, Report, percentile};

const PER_SECOND: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(30);
const MANIFEST: &str = "name = \"clockwork\"\nversion = \"1.0.0\"\nallow.publish = [\"ran\"]\nat = \"* * * * * *\"\n";
const SCRIPT: &str = "import { publish } from \"sedge\";\n\
                      export function handle(message) { return publish(\"ran\", Date.parse(message.properties[\"sedge-due\"])); }\n";

pub(crate) fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    eprintln!("schedules");
    // One run a second.
    let runs = 40 * size.rounds;
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("function.toml"), MANIFEST)?;
    std::fs::write(folder.path().join("function.js"), SCRIPT)?;
    let setup =
        Setup::new(broker.url()).function(folder.path()).function(&guest("count")).set("node", "clock = \"trusted\"");
    let _daemon = Daemon::start(&setup);
    broker.await_daemon();
    let mut listener = broker.client("listener");
    listener.subscribe(&["ran"])?;
    let (mut stream, _) = Client::connect(broker.port, &Hello::new("load"))?.into_parts();
    let load = std::thread::spawn(move || {
        let message = |index: usize| Publish::new(&format!("count/s{}", index % 16), reading(index));
        paced(&mut stream, PER_SECOND, runs * PER_SECOND as usize, message)
    });
    let mut late = Vec::new();
    while !load.is_finished() {
        let Some(ran) = listener.receive(PATIENCE)? else { break };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let due_ms: f64 = ran.text().parse().expect("a run says when it was due");
        late.push(now.as_secs_f64() * 1e3 - due_ms);
    }
    load.join().expect("the load is sent")?;
    let what = "from the due time to the message of its run, 1,000 messages/s beside, one run a second";
    report.add("schedule_late_ms", percentile(&late, 99.0), Goal::AtMost(50.0), what);
    Ok(())
}

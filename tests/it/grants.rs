//! Interfaces that a function gets because its manifest asks, inside the worker's sandbox.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::daemon::{Daemon, Setup};
use crate::harness::guest::{guest, variant};
use crate::harness::mosquitto::Mosquitto;
use crate::harness::upstream::Upstream;
use crate::harness::wire::Publish;
use crate::harness::{Site, eventually};

#[test]
fn clocks_and_random_numbers_are_there_for_a_function_that_may_use_them() {
    let site = Site::start_with(|setup| setup.function(&guest("granted")));
    site.broker.client("sensor").publish_all([Publish::new("granted/a", ""), Publish::new("granted/b", "")]).unwrap();
    let said = |upstream: &Upstream| -> Vec<Vec<u64>> {
        let received = upstream.received();
        let said = received.iter().filter(|message| message.topic.ends_with("/said"));
        said.map(|message| message.text().split(' ').filter_map(|number| number.parse().ok()).collect()).collect()
    };
    let both = eventually(Duration::from_secs(20), || said(&site.upstream).len() == 2);
    assert!(both, "{:?}; log:\n{}", site.upstream.received(), site.daemon.log());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let said = said(&site.upstream);
    for numbers in &said {
        let [unix_ms, passed, _] = numbers[..] else { panic!("{said:?}") };
        assert!(now.abs_diff(unix_ms) < 60_000, "{said:?}");
        assert!(passed < 60_000_000_000, "{said:?}");
    }
    assert_ne!(said[0][2], said[1][2], "{said:?}");
}

#[test]
fn a_function_that_imports_more_than_its_manifest_allows_is_refused_with_the_key_to_set() {
    let broker = Mosquitto::start();
    let folder = tempfile::tempdir().unwrap();
    let without = |name: &str, line: &str| {
        variant(&guest("granted"), folder.path(), name, "granted/#", |manifest| manifest.replace(line, ""))
    };
    for (key, interface, function) in [
        ("clock", "wasi:clocks/", without("no-clock", "clock = true")),
        ("random", "wasi:random/random@", without("no-random", "random = true")),
    ] {
        let mut daemon = Daemon::prepare(&Setup::new(broker.url()).function(&function));
        daemon.launch();
        assert!(eventually(Duration::from_secs(20), || daemon.log().contains("which its manifest does not allow")));
        let check = daemon.command(&["check"]);
        assert!(!check.status.success());
        for says in [daemon.log(), String::from_utf8_lossy(&check.stderr).into_owned()] {
            assert!(says.contains(&format!("`{interface}")), "{key}: {says}");
            assert!(says.contains(&format!("write `{key} = true` under [allow]")), "{key}: {says}");
        }
    }
}

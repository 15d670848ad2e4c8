//! `sedge-fuzz [TARGET] [SECONDS] [SEED]`: runs targets on mutations of their corpus. Without a target: all of them.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sedge_fuzz::{TARGETS, Target, corpus, mutate::Mutator};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().filter(|name| name != "all");
    let secs = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(60);
    let seed = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let chosen: Vec<_> = TARGETS.iter().filter(|it| name.as_deref().is_none_or(|name| name == it.name)).collect();
    if chosen.is_empty() {
        let names = TARGETS.map(|target| target.name).join(", ");
        eprintln!("usage: sedge-fuzz [TARGET] [SECONDS] [SEED]; the targets are {names}");
        return ExitCode::from(2);
    }
    let broken = chosen.into_iter().filter(|target| !holds(target, Duration::from_secs(secs), seed)).count();
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a target breaks no rule in this time.
fn holds(target: &Target, time: Duration, seed: u64) -> bool {
    let seeds: Vec<Vec<u8>> = corpus(target.name).into_iter().map(|(_, bytes)| bytes).collect();
    let mut mutator = Mutator::new(seed, target.words);
    let (start, mut runs) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let input = mutator.input(&seeds);
        if catch_unwind(|| (target.run)(&input)).is_err() {
            let path = format!("finding-{}-{seed}-{runs}", target.name);
            let kept = std::fs::write(&path, &input);
            println!("{:<14} broke a rule in run {runs}; the input: {path} ({kept:?})", target.name);
            return false;
        }
        runs += 1;
    }
    println!(
        "{:<14} {runs} runs in {} s, seed {seed}, {} inputs in the corpus",
        target.name,
        time.as_secs(),
        seeds.len()
    );
    true
}

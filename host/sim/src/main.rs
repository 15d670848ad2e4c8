//! `sedge-sim`: a campaign of simulated boards. One run is one seed; the same seed gives the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sedge_sim::world::{Outcome, Plan, run};

const HELP: &str = "\
Simulates boards with faults and checks that every promise holds.

Usage: sedge-sim [--seeds N] [--from N] [--seconds N] [--faults TENTHS] [--steps N] [--threads N]
       sedge-sim --seed N [--trace]

  --seeds N      how many runs (1,000)
  --from N       the first seed (0)
  --seconds N    stop after so long, whatever --seeds says
  --faults N     rate of all faults, in tenths of the usual (10)
  --steps N      length of a run before faults stop (600)
  --threads N    threads (all cores)
  --seed N       one run, again; prints what it broke
  --trace        with --seed: everything that the board was told and wanted

Exit code 1 if anything was broken or a rare path was not reached. Fewer than 2,000 runs within --seconds need not reach
every rare path.
";

/// Runs after which a campaign that ends by the clock must have reached every rare path.
const REACHES_ALL: u64 = 2000;

struct Args {
    seeds: u64,
    from: u64,
    seconds: Option<u64>,
    threads: usize,
    seed: Option<u64>,
    trace: bool,
    plan: Plan,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(args)) if args.seed.is_some() => replay(&args),
        Ok(Some(args)) => campaign(&args),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sedge-sim: {error}; see --help");
            ExitCode::from(2)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args =
        Args { seeds: 1000, from: 0, seconds: None, threads, seed: None, trace: false, plan: Plan::default() };
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or(format!("{word} needs a number"))?;
            value.parse().map_err(|_| format!("{word} needs a number, not {value:?}"))
        };
        match word.as_str() {
            "--seeds" => args.seeds = number()?,
            "--from" => args.from = number()?,
            "--seconds" => args.seconds = Some(number()?),
            "--faults" => args.plan.faults = number()?,
            "--steps" => args.plan.steps = u32::try_from(number()?).map_err(|error| error.to_string())?,
            "--threads" => args.threads = usize::try_from(number()?.max(1)).map_err(|error| error.to_string())?,
            "--seed" => args.seed = Some(number()?),
            "--trace" => args.trace = true,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(Some(args))
}

fn replay(args: &Args) -> ExitCode {
    let seed = args.seed.unwrap_or_default();
    let (outcome, trace) = run(seed, args.plan, args.trace);
    trace.iter().for_each(|line| println!("{line}"));
    for violation in &outcome.violations {
        println!("seed {seed}: {}: {}", violation.rule, violation.what);
    }
    println!("seed {seed}: {} messages, {} violations", outcome.messages, outcome.violations.len());
    ExitCode::from(u8::from(!outcome.violations.is_empty()))
}

#[derive(Default)]
struct Total {
    runs: u64,
    messages: u64,
    faults: BTreeMap<String, u64>,
    reached: BTreeSet<&'static str>,
    failed: Vec<(u64, Outcome)>,
}

fn campaign(args: &Args) -> ExitCode {
    // Once a large block was freed, glibc keeps the memory of a run for the next one, instead of a page fault for each page.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
    // A panic is reported with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let next = AtomicU64::new(args.from);
    let total = Mutex::new(Total::default());
    let is_over = || args.seconds.is_some_and(|seconds| started.elapsed() >= Duration::from_secs(seconds));
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                while !is_over() {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= args.from + args.seeds {
                        return;
                    }
                    let (outcome, _) = run(seed, args.plan, false);
                    total.lock().expect("no thread panics").add(seed, outcome);
                }
            });
        }
    });
    total.into_inner().expect("no thread panics").report(started.elapsed(), args)
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.runs += 1;
        self.messages += outcome.messages;
        for (fault, count) in &outcome.faults {
            *self.faults.entry(format!("{fault:?}")).or_default() += count;
        }
        self.reached.extend(outcome.reached.iter().copied());
        if !outcome.violations.is_empty() {
            self.failed.push((seed, outcome));
        }
    }

    fn report(mut self, elapsed: Duration, args: &Args) -> ExitCode {
        println!(
            "{} runs, {} messages, {:.0} messages a second",
            self.runs,
            self.messages,
            self.messages as f64 / elapsed.as_secs_f64()
        );
        for (fault, count) in &self.faults {
            println!("  {fault:<20} {count}");
        }
        let missing: Vec<&str> = sedge_sim::RARE.iter().filter(|it| !self.reached.contains(**it)).copied().collect();
        println!("reached {} of {} rare paths", sedge_sim::RARE.len() - missing.len(), sedge_sim::RARE.len());
        for path in &missing {
            println!("  not reached: {path}");
        }
        self.failed.sort_by_key(|(seed, _)| *seed);
        let mut rules: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (seed, outcome) in &self.failed {
            let rule = outcome.violations[0].rule;
            rules.entry(rule).or_insert((*seed, 0)).1 += 1;
        }
        for (rule, (seed, runs)) in &rules {
            let what = self.failed.iter().find(|(it, _)| it == seed).map_or("", |(_, it)| &it.violations[0].what);
            println!("BROKEN in {runs} runs: {rule}: {what}");
            println!("  replay: make sim ARGS=\"--seed {seed} --steps {}\"", shrink(*seed, args.plan, rule));
        }
        println!("{} violations", self.failed.len());
        let must_reach_all = args.seconds.is_none() || self.runs >= REACHES_ALL;
        ExitCode::from(u8::from(!self.failed.is_empty() || must_reach_all && !missing.is_empty()))
    }
}

/// The fewest steps after which the seed breaks the same rule.
fn shrink(seed: u64, plan: Plan, rule: &str) -> u32 {
    let breaks = |steps| {
        let (outcome, _) = run(seed, Plan { steps, ..plan }, false);
        outcome.violations.first().is_some_and(|it| it.rule == rule)
    };
    let mut steps = plan.steps;
    for divisor in [2, 3, 5, 10, 20, 50] {
        let mut fewer = steps - steps / divisor;
        while fewer < steps && fewer > 0 && breaks(fewer) {
            steps = fewer;
            fewer = steps - steps / divisor;
        }
    }
    steps
}

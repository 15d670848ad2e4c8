//! `sedge logs`: the log of a board, read through the broker.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::broker::BrokerArgs;
use super::record::period;
use super::request::{Answered, Asker};
use super::signing::{load_key, node};
use crate::terminal::{self, say};
use sedge_core::deploy::requests::RequestKind;

/// Pause between questions. A board carries out a thousand requests an hour.
const EVERY: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 3;

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The board, by its node.name
    #[arg(long, value_name = "NAME", value_parser = node)]
    node: String,
    /// Follow for so long: 30s, 10m, 1h. Without it, show what the board has kept
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    time: Option<Duration>,
    /// Private key of one that may read the log of the board, as `sedge keygen` writes it [default: SEDGE_KEY]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print a JSON object for each line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

pub fn run(args: &LogsArgs) -> anyhow::Result<()> {
    let key = load_key(args.key.as_deref())?;
    crate::block_on(async {
        let mut asker = Asker::connect(&args.broker, &args.node, "", key).await?;
        let result = follow(args, &mut asker).await;
        asker.close().await;
        result
    })
}

async fn follow(args: &LogsArgs, asker: &mut Asker) -> anyhow::Result<()> {
    let end = args.time.map(|time| Instant::now() + time);
    let mut after = 0;
    loop {
        let Answered { answer, pieces, .. } = asker.ask_again(&RequestKind::Logs { after }, ATTEMPTS).await?;
        if answer.left_out > 0 {
            eprintln!("{} lines were left out: too many came", answer.left_out);
        }
        after = answer.last;
        // A cut between pieces may go through a character.
        let text = String::from_utf8_lossy(&pieces.concat()).into_owned();
        for line in text.lines() {
            match args.json {
                true => say!("{}", terminal::json(&json!({ "node": args.node, "line": line }))),
                false => say!("{line}"),
            }
        }
        let Some(end) = end.filter(|end| Instant::now() < *end) else { return Ok(()) };
        sleep(EVERY.min(end.duration_since(Instant::now()))).await;
    }
}

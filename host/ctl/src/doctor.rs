//! `sedge doctor`: checks the board, the broker and the configuration for problems, and suggests fixes.
//!
//! Each check has two halves: `inspect` observes the system, and `evaluate` turns observations into findings.

mod broker;
mod mosquitto;
mod rehearsal;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{ConfigArgs, EXIT_CONFIG, printable, terminal};
use sedge_core::config::{Config, Problems};
use sedge_core::finding::{Finding, Verdict};
use sedge_store::checks;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Configuration file of Mosquitto on this board [default: that of the running broker, else
    /// /etc/mosquitto/mosquitto.conf]
    #[arg(long, value_name = "FILE")]
    mosquitto_conf: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Returns exit code 1 on warnings, 78 when the configuration is wrong.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let (config, problems) = Config::inspect(&args.config.path(), &sedge_sandbox::machine::MACHINE);
    let mut findings = configuration(&problems);
    findings.push(checks::clock(config.node.clock, sedge_sandbox::clock::clock_synced()));
    findings.extend(checks::inspect(&config, sedge_sandbox::sandboxing::has_filter()));
    findings.push(checks::inspect_syncs(&config.node.data_dir));
    // With errors the broker's address may be a default.
    if !problems.has_errors() {
        findings.extend(inspect_brokers(&config, args)?);
    }
    let warnings = findings.iter().filter(|finding| finding.verdict == Verdict::Warning).count();
    let mut out = terminal::out();
    if args.json {
        writeln!(out, "{}", terminal::pretty_json(&as_json(&findings, warnings)))?;
    } else {
        print(&mut out, &findings, warnings)?;
    }
    Ok(match (problems.has_errors(), warnings) {
        (true, _) => ExitCode::from(EXIT_CONFIG),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

fn inspect_brokers(config: &Config, args: &DoctorArgs) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let url = &config.mqtt.connection.url;
    findings.extend(broker::unencrypted("mqtt.url", url));
    findings.extend(config.sinks.list.iter().filter_map(|sink| {
        let url = sink.url()?;
        broker::unencrypted(&format!("{}.url", sink.section()), url)
    }));
    let observed = broker::inspect(&config.mqtt)?;
    let version = observed.as_ref().ok().and_then(|broker| broker.version.clone());
    let open = !url.is_local() || broker::is_open(url.port());
    let answers = observed.is_ok();
    findings.extend(broker::evaluate(&config.mqtt, observed, open));
    if answers {
        findings.push(rehearsal::inspect(config)?);
    }
    let is_mosquitto = version.is_none_or(|version| version.starts_with("mosquitto"));
    if is_mosquitto {
        findings.extend(mosquitto::inspect(
            args.mosquitto_conf.as_deref(),
            url.is_local().then(|| url.port()),
            config.mqtt.session_expiry_secs.get().into(),
        ));
    }
    Ok(findings)
}

/// Findings for errors and warnings of the configuration, such as secrets that everybody can read.
fn configuration(problems: &Problems) -> Vec<Finding> {
    if problems.is_empty() {
        return vec![Finding::good("configuration", "no errors or warnings")];
    }
    let finding = |problem: &sedge_core::config::Problem| {
        let key = if problem.key.is_empty() { String::new() } else { format!("{}: ", problem.key) };
        Finding {
            check: "configuration",
            verdict: Verdict::Warning,
            what: format!("{}: {key}{}", problem.at, problem.what),
            fix: problem.hint.clone(),
        }
    };
    problems.iter().map(finding).collect()
}

fn print(out: &mut impl Write, findings: &[Finding], warnings: usize) -> io::Result<()> {
    for finding in findings {
        writeln!(out, "{:<14} {:<8} {}", finding.check, finding.verdict.as_str(), printable(&finding.what))?;
        if let Some(fix) = &finding.fix {
            writeln!(out, "{:23} -> {}", "", printable(fix))?;
        }
    }
    match warnings {
        0 => writeln!(out, "\nno warnings"),
        1 => writeln!(out, "\n1 warning"),
        many => writeln!(out, "\n{many} warnings"),
    }
}

fn as_json(findings: &[Finding], warnings: usize) -> Value {
    json!({ "ok": warnings == 0, "findings": findings })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_fix_is_printed_below_the_warning() {
        let findings = [
            Finding::good("clock", "set"),
            Finding::warning("sync", "a synced write takes 30 ms", "set store.flash_saver_ms"),
            Finding::unknown("mosquitto", "it is elsewhere\x1b[2J", "look there"),
        ];
        let mut out = Vec::new();
        print(&mut out, &findings, 1).unwrap();
        let expected = "\
clock          good     set
sync           warning  a synced write takes 30 ms
                        -> set store.flash_saver_ms
mosquitto      unknown  it is elsewhere\\u{1b}[2J
                        -> look there

1 warning
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let json = as_json(&findings, 1);
        assert_eq!(json["ok"], false);
        assert_eq!(json["findings"][0], json!({ "check": "clock", "verdict": "good", "what": "set" }));
        assert_eq!(json["findings"][1]["mend"], "set store.flash_saver_ms");
    }

    #[test]
    fn problems_of_the_configuration_are_warnings() {
        let (_, problems) = Config::parse("[mqtt]\nurl = 1\n", Path::new("sedge.toml"));
        let findings = configuration(&problems);
        assert_eq!(findings[0].what, "sedge.toml:2:7: mqtt.url: expected a string, found a number");
        assert_eq!(findings[0].fix.as_deref(), Some("put it in quotes"));
        assert_eq!(configuration(&Problems::default())[0].verdict, Verdict::Good);
    }
}

//! Options that name the broker, and the connection to it.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cli::client::Client;
use crate::config::Node;
use crate::mqtt;

const DEFAULT_BROKER: &str = "mqtt://localhost:1883";

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Broker")]
pub(crate) struct BrokerArgs {
    /// Address, mqtt://HOST[:PORT] or mqtts://HOST[:PORT] [default: SEDGE_BROKER, or mqtt://localhost:1883]
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// User name
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Certificates to trust instead of the system's, in PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Client certificate in PEM
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Private key of the client certificate, in PEM; not the signing key
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// First level of Sedge's topics, as in node.base_topic of the boards [default: sedge]
    #[arg(long, value_name = "TOPIC")]
    base_topic: Option<String>,
}

impl BrokerArgs {
    pub(crate) fn base(&self) -> String {
        self.base_topic.clone().unwrap_or_else(|| Node::default().base_topic)
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let named = || std::env::var("SEDGE_BROKER").ok().filter(|url| !url.is_empty());
        let url = self.broker.clone().or_else(named).unwrap_or_else(|| DEFAULT_BROKER.to_owned());
        let options = mqtt::Options {
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            ..Client::options(&url, "operator")?
        };
        let client =
            Client::connect(options).await.with_context(|| format!("cannot connect to the broker at {url}"))?;
        if !client.retains() {
            bail!(
                "the broker at {url} does not support retained messages, which carry all orders and reports: set \
                 retain_available true in mosquitto.conf"
            );
        }
        Ok(client)
    }
}

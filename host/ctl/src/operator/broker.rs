//! Options that name the broker, and the connection to it.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::client::Client;
use sedge_core::config::{Endpoint, Node, Scheme};

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Broker")]
pub(crate) struct BrokerArgs {
    #[arg(
        long,
        value_name = "URL",
        help = "Address, mqtt://HOST[:PORT] or mqtts://HOST[:PORT], or ws:// and wss:// with a path [default: SEDGE_BROKER, or mqtt://localhost:1883]"
    )]
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
        self.base_topic.clone().unwrap_or_else(|| Node::BASE_TOPIC.to_owned())
    }

    /// How to connect, as a client that lives as long as one command.
    pub(crate) fn options(&self, purpose: &str) -> anyhow::Result<sedge_mqtt::Options> {
        let named = || std::env::var("SEDGE_BROKER").ok().filter(|url| !url.is_empty());
        let url = match self.broker.clone().or_else(named) {
            Some(url) => Endpoint::parse(&url, Scheme::MQTT)?,
            None => Endpoint::default(),
        };
        let mut options = Client::options(url, purpose)?;
        let connection = &mut options.connection;
        connection.username.clone_from(&self.username);
        connection.password_file.clone_from(&self.password_file);
        connection.ca_file.clone_from(&self.ca_file);
        connection.cert_file.clone_from(&self.cert_file);
        connection.key_file.clone_from(&self.key_file);
        Ok(options)
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let options = self.options("operator")?;
        let url = options.connection.url.clone();
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

//! TLS of connections to brokers, and what its errors mean.

use std::io;
use std::sync::Arc;

use rumqttc::tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rumqttc::tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rumqttc::tokio_rustls::rustls::pki_types::pem::PemObject;
use rumqttc::tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rumqttc::tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};

use super::OptionsError;
use super::options::read;
use super::reason::words;
use sedge_core::config::Connection;
use sedge_core::message::Digest;
use sedge_core::time::rfc3339;

/// Reads the certificates and keys of a connection.
pub(crate) fn configuration(connection: &Connection) -> Result<Arc<ClientConfig>, OptionsError> {
    let url = &connection.url;
    let roots_error = |reason: String| OptionsError::Roots { url: url.clone(), reason };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| roots_error(error.to_string()))?;
    let builder = if let Some(digest) = connection.tls_pin_sha256 {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { digest, provider }))
    } else {
        let mut roots = RootCertStore::empty();
        match &connection.ca_file {
            Some(path) => {
                let pem = read(path)?;
                roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        if roots.is_empty() {
            return Err(roots_error("no certificate was found".into()));
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match (&connection.cert_file, &connection.key_file) {
        (Some(cert), Some(key)) => {
            let unusable = |reason: String| OptionsError::Identity { path: cert.clone(), reason };
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(cert)?).collect();
            let chain = chain.map_err(|error| unusable(error.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| unusable(error.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(error.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = connection.tls_alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(Arc::new(config))
}

/// Accepts one certificate, whatever it says about itself.
#[derive(Debug)]
struct Pinned {
    digest: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let digest = Digest(Sha256::digest(certificate).into());
        if digest == self.digest {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(format!("its certificate has the SHA-256 digest {digest}, not that of tls_pin_sha256")))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Words for an error of the handshake, with the fix. They hold no present time, so that one cause is one text.
pub fn explain(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the port is not for TLS: write mqtt:// (https: http://), or use the port for TLS".into()
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server wants a client certificate: set cert_file and key_file".into()
        }
        Error::AlertReceived(alert) => format!("the server ended the TLS handshake: {}", words(alert)),
        Error::NoApplicationProtocol => "the server speaks none of the protocols in tls_alpn".into(),
        other => other.to_string(),
    })
}

fn certificate(error: &CertificateError) -> String {
    let text = format!("{error:?}");
    match error {
        CertificateError::Expired => "its certificate has expired: renew it".into(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired on {}: renew it", date(*not_after))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet: is this board's clock set?".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is valid from {} on: is this board's clock set?", date(*not_before))
        }
        CertificateError::UnknownIssuer => {
            "its certificate is signed by nobody whom this board trusts: name the certificate of its authority in ca_file".into()
        }
        CertificateError::NotValidForName => "its certificate is for another host name".into(),
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => {
            let name = expected.to_str();
            let kind = if matches!(expected, ServerName::IpAddress(_)) { "IP" } else { "DNS" };
            format!(
                "its certificate names no host in subjectAltName, and a common name (CN) does not count: make it with \
                 subjectAltName={kind}:{name}, or pin it with tls_pin_sha256"
            )
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("its certificate is for {}, not for {}: use such a name in url", presented.join(", "), expected.to_str())
        }
        _ if text.contains("CaUsedAsEndEntity") => "its certificate is one of an authority (basicConstraints CA:TRUE): make one \
             with CA:FALSE for the server, or pin it with tls_pin_sha256"
            .into(),
        _ if text.contains("UnsupportedCertVersion") => "its certificate is of X.509 version 1: make one of version 3 (openssl x509 \
             -req with -extfile and a subjectAltName)"
            .into(),
        other => format!("its certificate is not accepted: {other}"),
    }
}

fn date(time: UnixTime) -> String {
    rfc3339(time.as_secs() * 1000)[..10].to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_over_a_certificate_says_the_fix_and_not_the_time() {
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let say = |error| explain(&io::Error::other(Error::InvalidCertificate(error))).unwrap();
        let expired = CertificateError::ExpiredContext { time: at(1_800_000_000), not_after: at(1_700_000_000) };
        assert_eq!(say(expired), "its certificate expired on 2023-11-14: renew it");
        let early = CertificateError::NotValidYetContext { time: at(7), not_before: at(1_700_000_000) };
        assert_eq!(say(early), "its certificate is valid from 2023-11-14 on: is this board's clock set?");
        let expected = ServerName::try_from("broker.local").unwrap();
        let nameless = CertificateError::NotValidForNameContext { expected, presented: Vec::new() };
        assert!(say(nameless).contains("subjectAltName=DNS:broker.local"));
        assert!(say(CertificateError::UnknownIssuer).contains("ca_file"));
        assert_eq!(explain(&io::Error::other("x")), None);
    }
}

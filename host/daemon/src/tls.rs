//! The certificate that clients of the daemon's servers see.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct CertificateError {
    path: String,
    reason: String,
}

/// `None`: without TLS.
pub(crate) fn acceptor(
    cert_file: Option<&PathBuf>,
    key_file: Option<&PathBuf>,
) -> Result<Option<TlsAcceptor>, CertificateError> {
    let (Some(cert_file), Some(key_file)) = (cert_file, key_file) else { return Ok(None) };
    let failed = |path: &Path, reason: String| CertificateError { path: path.display().to_string(), reason };
    let chain = CertificateDer::pem_file_iter(cert_file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| failed(cert_file, format!("no certificate: {error}")))?;
    if chain.is_empty() {
        return Err(failed(cert_file, "no certificate in PEM".into()));
    }
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| failed(key_file, format!("no key: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let server = server.and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut server = server.map_err(|error| failed(cert_file, format!("does not go with the key: {error}")))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

//! A registry on loopback with one image in it, made of this program: so pulls are real ones.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use embermesh_node::containers::docker::executable_archive;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub(crate) struct Registry {
    address: SocketAddr,
    content: Arc<Content>,
}

struct Content {
    /// By the end of their paths.
    blobs: HashMap<String, Bytes>,
    manifest: (String, Bytes),
    layer: String,
    layers: AtomicU32,
    manifests: AtomicU32,
    asked: AtomicU32,
    /// Nothing is served meanwhile.
    held: watch::Sender<bool>,
}

impl Registry {
    pub(crate) async fn start(command: &[&str]) -> Self {
        let layer = Bytes::from(unique_layer());
        let layer_digest = digest(&layer);
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = Bytes::from(
            json!({"architecture": arch, "os": "linux", "config": {"Cmd": command},
                   "rootfs": {"type": "layers", "diff_ids": [layer_digest]}})
            .to_string(),
        );
        let config_digest = digest(&config);
        let part =
            |kind: &str, bytes: &Bytes, digest: &str| json!({"mediaType": kind, "size": bytes.len(), "digest": digest});
        let manifest = Bytes::from(
            json!({"schemaVersion": 2, "mediaType": MANIFEST,
                   "config": part("application/vnd.docker.container.image.v1+json", &config, &config_digest),
                   "layers": [part("application/vnd.docker.image.rootfs.diff.tar", &layer, &layer_digest)]})
            .to_string(),
        );
        let content = Arc::new(Content {
            manifest: (digest(&manifest), manifest),
            layer: layer_digest.clone(),
            blobs: HashMap::from([(layer_digest, layer), (config_digest, config)]),
            layers: AtomicU32::new(0),
            manifests: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            held: watch::Sender::new(false),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = content.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let content = served.clone();
                let service = hyper::service::service_fn(move |request| {
                    let (answer, mut held) = (answer(&content, &request), content.held.subscribe());
                    async move {
                        held.wait_for(|held| !held).await.ok();
                        Ok::<_, Infallible>(answer)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, content }
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/test/stock:1", self.address)
    }

    /// The same under another name.
    pub(crate) fn other_image(&self) -> String {
        format!("{}/test/other:1", self.address)
    }

    /// Whether calls are kept waiting.
    pub(crate) fn hold(&self, held: bool) {
        self.content.held.send_replace(held);
    }

    pub(crate) fn asked(&self) -> u32 {
        self.content.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn layers_served(&self) -> u32 {
        self.content.layers.load(Ordering::Relaxed)
    }

    pub(crate) fn manifests_served(&self) -> u32 {
        self.content.manifests.load(Ordering::Relaxed)
    }
}

/// An engine that had it before would not ask for it again.
fn unique_layer() -> Vec<u8> {
    let mut archive = executable_archive("/proc/self/exe".as_ref()).unwrap();
    // What marks an archive's end: another one follows.
    archive.truncate(archive.len() - 1024);
    let mut rest = tar::Builder::new(archive);
    let text = format!("{:?}", std::time::SystemTime::now());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    rest.append_data(&mut header, "unique", text.as_bytes()).unwrap();
    rest.into_inner().unwrap()
}

fn answer(content: &Content, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    content.asked.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path();
    let last = path.rsplit('/').next().unwrap();
    let (digest, bytes, kind) = if path == "/v2/" {
        ("", Bytes::from_static(b"{}"), "application/json")
    } else if path.contains("/manifests/") {
        content.manifests.fetch_add(1, Ordering::Relaxed);
        (content.manifest.0.as_str(), content.manifest.1.clone(), MANIFEST)
    } else if let Some(blob) = content.blobs.get(last) {
        if last == content.layer && request.method() == Method::GET {
            content.layers.fetch_add(1, Ordering::Relaxed);
        }
        (last, blob.clone(), "application/octet-stream")
    } else {
        return Response::builder().status(404).body(Full::default()).unwrap();
    };
    let answer = Response::builder().header("Content-Type", kind).header("Docker-Content-Digest", digest);
    if request.method() == Method::HEAD {
        return answer.header("Content-Length", bytes.len()).body(Full::default()).unwrap();
    }
    answer.body(Full::new(bytes)).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("sha256:{}", String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap())
}

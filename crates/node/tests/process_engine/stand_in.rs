//! What runs in the containers of these tests: serves /init and /run as the contract says, and does what
//! the body of /run asks for. `python` and `nodejs` stand for programs that fail to start.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;

pub(crate) fn serve(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let options: HashMap<&str, &str> = args.chunks(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    if options["--runtime"] == "python" || options["--runtime"] == "nodejs" {
        eprintln!("interpreter is {}", options["--interpreter"]);
        eprintln!("cannot start on purpose");
        return ExitCode::from(3);
    }
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let socket = PathBuf::from(options["--socket"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(listen(socket));
    ExitCode::SUCCESS
}

/// Boxed, because answering a request may start another listener.
fn listen(socket: PathBuf) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let early = socket.with_extension("new");
        let listener = UnixListener::bind(&early).unwrap();
        std::fs::rename(&early, socket).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(answer);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

pub(crate) async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/adopt" {
        return Ok(Response::new(Full::new(json!({"running": 0}).to_string().into())));
    }
    let init = request.uri().path() == "/init";
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let mut response = Response::builder();
    if init && let Some(file) = asked["socket"].as_str() {
        let path = std::env::current_dir().unwrap().join(file);
        tokio::spawn(listen(path.clone()));
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        response = response.header("x-embermesh-socket", path.to_str().unwrap());
    }
    let answer = if init { json!({"ok": true}).to_string() } else { act(&asked).await };
    Ok(response.header("x-embermesh-log-lines", "2").body(Full::new(answer.into())).unwrap())
}

async fn act(asked: &Value) -> String {
    let number = |name: &str| asked[name].as_u64().unwrap();
    match asked["do"].as_str().unwrap() {
        "echo" => {}
        "environment" => return json!(std::env::vars().collect::<HashMap<_, _>>()).to_string(),
        "limits" => return json!(std::fs::read_to_string("/proc/self/limits").unwrap()).to_string(),
        "sleep" => tokio::time::sleep(Duration::from_millis(number("ms"))).await,
        "swallow" => {
            std::hint::black_box(vec![1_u8; usize::try_from(number("mb")).unwrap() << 20]);
        }
        "connect" => {
            let to = asked["to"].as_str().unwrap();
            let connected = tokio::time::timeout(Duration::from_secs(2), tokio::net::TcpStream::connect(to)).await;
            return json!({"connected": matches!(connected, Ok(Ok(_)))}).to_string();
        }
        "write" => return json!({"written": std::fs::write(asked["path"].as_str().unwrap(), "x").is_ok()}).to_string(),
        "answer" => return "x".repeat(asked["bytes"].as_u64().unwrap().try_into().unwrap()),
        "print" => print(asked["lines"].as_str().unwrap()),
        "exit" => {
            eprintln!("exiting on purpose");
            std::process::exit(number("code").try_into().unwrap());
        }
        "daemons" => {
            for _ in 0..number("count") {
                again(&["__daemon"]).wait().unwrap();
            }
        }
        "hogs" => {
            for _ in 0..number("count") {
                // Kept as zombies' parent only: they end with the container.
                drop(again(&["__hog", &number("mb").to_string()]));
            }
        }
        other => panic!("cannot {other}"),
    }
    json!({"pid": std::process::id()}).to_string()
}

fn print(lines: &str) {
    for stream in [&mut std::io::stdout() as &mut dyn Write, &mut std::io::stderr()] {
        stream.write_all(lines.as_bytes()).unwrap();
        stream.flush().unwrap();
    }
}

/// Leaves session, group and parent, and stays; holds no pipe of its parent.
pub(crate) fn daemon() -> ExitCode {
    if nix::unistd::setsid().is_ok() && std::env::args().len() == 2 {
        // Whoever adopts it waits for it.
        drop(again(&["__daemon", "stays"]));
        return ExitCode::SUCCESS;
    }
    loop {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Uses that many megabytes and keeps them.
pub(crate) fn hog(mut args: impl Iterator<Item = String>) -> ExitCode {
    let mb: usize = args.next().unwrap().parse().unwrap();
    let memory = vec![1_u8; mb << 20];
    loop {
        std::thread::sleep(Duration::from_secs(1));
        std::hint::black_box(&memory);
    }
}

fn again(args: &[&str]) -> std::process::Child {
    let mut command = Command::new("/proc/self/exe");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

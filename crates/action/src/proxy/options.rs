//! The proxy's command line, as the agent's engine writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What serves the action behind the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Example actions, in the proxy's own process.
    Builtin,
    /// An executable made with the SDK.
    Native,
    /// An executable that reads requests on stdin and answers on fd 3, one at a time.
    ActionLoop,
    /// Python 3 source.
    Python,
    /// Node.js source.
    NodeJs,
}

impl Runtime {
    fn needs_interpreter(self) -> bool {
        matches!(self, Self::Python | Self::NodeJs)
    }
}

impl FromStr for Runtime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "builtin" => Self::Builtin,
            "native" => Self::Native,
            "actionloop" => Self::ActionLoop,
            "python" => Self::Python,
            "nodejs" => Self::NodeJs,
            _ => {
                return Err(format!(
                    "--runtime {text:?} is not known: use builtin, native, actionloop, python or nodejs"
                ));
            }
        })
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Builtin => "builtin",
            Self::Native => "native",
            Self::ActionLoop => "actionloop",
            Self::Python => "python",
            Self::NodeJs => "nodejs",
        })
    }
}

/// One container's proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerOptions {
    /// The Unix socket to serve the contract on.
    pub socket: PathBuf,
    pub runtime: Runtime,
    /// The most runs at a time, at least 1.
    pub concurrency: u32,
    /// The container's own folder; everything runs in it.
    pub workdir: PathBuf,
    /// The real `python3` or `node`, for those runtimes.
    pub interpreter: Option<PathBuf>,
}

impl ContainerOptions {
    /// Reads `--socket PATH --runtime R --concurrency N --workdir DIR [--interpreter PATH]`, program name not included.
    pub fn from_args(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut socket, mut runtime, mut workdir, mut interpreter) = (None, None, None, None);
        let mut concurrency = 1;
        let mut args = args;
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name} lacks its value"));
            match name.as_str() {
                "--socket" => socket = Some(PathBuf::from(value()?)),
                "--runtime" => runtime = Some(value()?.parse::<Runtime>()?),
                "--concurrency" => {
                    let text = value()?;
                    concurrency = text
                        .parse()
                        .ok()
                        .filter(|n| *n > 0)
                        .ok_or_else(|| format!("--concurrency {text:?} is not a number of at least 1"))?;
                }
                "--workdir" => workdir = Some(PathBuf::from(value()?)),
                "--interpreter" => interpreter = Some(PathBuf::from(value()?)),
                _ => {
                    return Err(format!(
                        "{name:?} is not an option: there are --socket, --runtime, --concurrency, --workdir and --interpreter"
                    ));
                }
            }
        }
        let options = Self {
            socket: socket.ok_or("--socket PATH is missing")?,
            runtime: runtime.ok_or("--runtime is missing")?,
            concurrency,
            workdir: workdir.ok_or("--workdir DIR is missing")?,
            interpreter,
        };
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), String> {
        if self.runtime == Runtime::ActionLoop && self.concurrency > 1 {
            return Err(format!(
                "--concurrency {}: an actionloop executable takes one request at a time; use 1",
                self.concurrency
            ));
        }
        match &self.interpreter {
            None if self.runtime.needs_interpreter() => {
                Err(format!("--runtime {} needs --interpreter PATH", self.runtime))
            }
            Some(path) if !path.is_absolute() => {
                Err(format!("--interpreter {:?} is not an absolute path", path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> Result<ContainerOptions, String> {
        ContainerOptions::from_args(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_engines_command_line_is_read() {
        let options =
            parse("--socket /s --runtime python --concurrency 8 --workdir /w --interpreter /usr/bin/python3").unwrap();
        assert_eq!(options.runtime, Runtime::Python);
        assert_eq!((options.concurrency, options.socket), (8, PathBuf::from("/s")));
        assert_eq!(parse("--socket /s --runtime builtin --workdir /w").unwrap().concurrency, 1);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (line, expected) in [
            ("--runtime builtin --workdir /w", "--socket"),
            ("--socket /s --workdir /w", "--runtime"),
            ("--socket /s --runtime ruby --workdir /w", "\"ruby\""),
            ("--socket /s --runtime builtin --workdir /w --concurrency 0", "at least 1"),
            ("--socket /s --runtime python --workdir /w", "--interpreter"),
            ("--socket /s --runtime python --workdir /w --interpreter node", "absolute"),
            ("--socket /s --runtime actionloop --workdir /w --concurrency 2", "one request at a time"),
            ("--socket", "lacks its value"),
            ("--sucket /s", "\"--sucket\""),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}

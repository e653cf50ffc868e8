//! The images of these tests: made of this program, without a registry.

use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, RemoveImageOptionsBuilder};
use bytes::Bytes;
use embermesh_node::containers::docker::executable_archive;
use futures::StreamExt;

#[derive(Debug)]
pub(crate) struct TestImages {
    pub(crate) docker: Docker,
    prefix: String,
}

impl TestImages {
    pub(crate) async fn make() -> Result<Self, String> {
        let docker = Docker::connect_with_unix_defaults().map_err(|error| error.to_string())?;
        let docker = docker.negotiate_version().await.map_err(|error| error.to_string())?;
        let images = Self { docker, prefix: format!("embermesh-test-{}", std::process::id()) };
        let archive = Bytes::from(executable_archive("/proc/self/exe".as_ref()).unwrap());
        images.import("own", archive.clone(), "LABEL a=b").await;
        for mode in ["serves", "exits", "deaf"] {
            let command = format!("CMD [\"/embermesh\", \"__stock\", \"{mode}\"]");
            images.import(mode, archive.clone(), &command).await;
        }
        let mut empty = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        empty.append_data(&mut header, "nothing", std::io::empty()).unwrap();
        images.import("empty", Bytes::from(empty.into_inner().unwrap()), "LABEL a=b").await;
        Ok(images)
    }

    pub(crate) fn name(&self, what: &str) -> String {
        format!("{}:{what}", self.prefix)
    }

    async fn import(&self, tag: &str, archive: Bytes, change: &str) {
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(&self.prefix)
            .tag(tag)
            .changes(vec![change.to_owned()])
            .build();
        let body = bollard::body_full(archive);
        let mut answers = self.docker.create_image(Some(options), Some(body), None);
        while let Some(answer) = answers.next().await {
            answer.unwrap();
        }
    }

    pub(crate) async fn remove(&self) {
        let own = format!(
            "embermesh-runtime:{}",
            embermesh_node::containers::docker::executable_digest("/proc/self/exe".as_ref()).unwrap()
        );
        let names = ["own", "serves", "exits", "deaf", "empty"].map(|what| self.name(what));
        for name in names.iter().chain([&own]) {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            self.docker.remove_image(name, Some(options), None).await.ok();
        }
    }
}

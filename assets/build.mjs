// Builds the static files that the web server serves under /static; see `--help`.

import crypto from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import timers from "node:timers/promises";
import url from "node:url";
import util from "node:util";
import zlib from "node:zlib";

const OLDEST_NODE = 20;
const ROOT = path.dirname(path.dirname(url.fileURLToPath(import.meta.url)));
const ASSETS = path.join(ROOT, "assets");
const RELEASES = ".releases"; // the records of `publish-assets`
const DIGEST = /-[A-Z0-9]{8}(?=\.)/;
const COMPRESSIBLE = /\.(css|js|svg|map|json|txt)$/;
const POLL_MILLISECONDS = 200;

const HELP = `usage: npm run build -- [--outdir DIR] [--manifest FILE] [--watch]

Bundle and minify each style sheet in assets/css/, except those that others import (their names
begin with an underscore), and each script in
assets/js/ (shared modules are in assets/js/lib/), and copy the images and fonts
in assets/img/. The name of each built file contains a digest of its content. A
compressed .gz and .br copy is written next to it if that is smaller. The
manifest, a JSON object that maps plain names to digested names, is written last.

  --outdir DIR     output directory (default: app/static)
  --manifest FILE  manifest file (default: app/manifest.json)
  --watch          rebuild after each change, until stdin is closed or SIGINT or
                   SIGTERM is received
  --help           show this help message

Files of previous builds are removed, but not with --watch, and not from a
directory that "python -m quart_upsun publish-assets" manages.
Exit codes: 0 success, 1 build failed (manifest unchanged), 2 usage error.
`;

// For files of this size, brotli's best quality takes seconds and saves only a few percent.
const LARGE_BYTES = 512 * 1024;
const LARGE_FILE_QUALITY = 9;

/** A build error that is reported without a stack trace. */
class BuildError extends Error {}

function readOptions(args) {
  const { values } = util.parseArgs({
    args,
    options: {
      outdir: { type: "string", default: path.join(ROOT, "app", "static") },
      manifest: { type: "string", default: path.join(ROOT, "app", "manifest.json") },
      watch: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  for (const name of ["outdir", "manifest"]) {
    if (values[name] === "") throw new Error(`Option '--${name}' needs a value`);
    values[name] = path.resolve(values[name]);
  }
  return values;
}

async function loadPackage(name) {
  try {
    return await import(name);
  } catch (error) {
    if (error.code !== "ERR_MODULE_NOT_FOUND") throw error;
    throw new BuildError(`the npm package ${name} is not installed: run \`npm ci\``);
  }
}

function sassPlugin(sass) {
  return {
    name: "sass",
    setup(build) {
      build.onLoad({ filter: /\.scss$/ }, ({ path: file }) => {
        try {
          // compileAsync takes four times as long.
          const { css } = sass.compile(file, {
            loadPaths: [path.join(ROOT, "node_modules")],
            // Bootstrap 5 requires @import.
            quietDeps: true,
            silenceDeprecations: ["import"],
          });
          return { contents: css, loader: "css", resolveDir: path.dirname(file) };
        } catch (error) {
          if (!(error instanceof sass.Exception)) throw error;
          const { url: source, start } = error.span;
          const location = {
            file: source ? path.relative(ROOT, url.fileURLToPath(source)) : file,
            line: start.line + 1,
            column: start.column,
          };
          return { errors: [{ text: error.sassMessage, location }] };
        }
      });
    },
  };
}

function describe({ text, location }) {
  return location ? `${location.file}:${location.line}:${location.column + 1}: ${text}` : text;
}

async function listFiles(directory) {
  const entries = await fs.readdir(directory, { withFileTypes: true, recursive: true });
  return entries
    .filter((entry) => entry.isFile() && !entry.name.startsWith("."))
    .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name))
    .sort();
}

async function bundle() {
  const esbuild = await loadPackage("esbuild");
  const sass = await loadPackage("sass");
  const images = await listFiles(path.join(ASSETS, "img"));
  const scripts = (await listFiles(path.join(ASSETS, "js"))).filter(
    (script) => path.dirname(script) === path.join(ASSETS, "js"),
  );
  const styles = (await listFiles(path.join(ASSETS, "css"))).filter(
    (style) => !path.basename(style).startsWith("_"),
  );
  const copied = Object.fromEntries(
    ["avif", "gif", "ico", "jpg", "png", "svg", "webp", "woff2"].map((ext) => [`.${ext}`, "copy"]),
  );
  for (const image of images) {
    if (path.extname(image) in copied) continue;
    throw new BuildError(
      `${path.relative(ROOT, image)} is not an image or font: move it out of assets/img/`,
    );
  }
  const options = {
    absWorkingDir: ROOT,
    entryPoints: [
      ...styles.map((style) => ({ in: style, out: path.parse(style).name })),
      // Modules in js/lib/ are only imported.
      ...scripts.map((script) => ({ in: script, out: path.basename(script, ".js") })),
      ...images.map((image) => {
        const { dir, name } = path.parse(path.relative(ASSETS, image));
        return { in: image, out: path.posix.join(...dir.split(path.sep), name) };
      }),
    ],
    outbase: ASSETS,
    outdir: path.join(ROOT, "build"), // only used for names: nothing is written there
    write: false,
    bundle: true,
    minify: true,
    format: "iife",
    target: ["chrome100", "firefox100", "safari15.4"],
    loader: copied,
    entryNames: "[dir]/[name]-[hash]",
    assetNames: "[dir]/[name]-[hash]",
    plugins: [sassPlugin(sass)],
    logLevel: "silent",
  };
  let result;
  try {
    result = await esbuild.build(options);
  } catch (error) {
    if (!error.errors?.length) throw error;
    throw new BuildError(error.errors.map(describe).join("\n"));
  }
  for (const warning of result.warnings) console.error(`warning: ${describe(warning)}`);
  return new Map(
    result.outputFiles.map((file) => [
      path.relative(options.outdir, file.path).split(path.sep).join("/"),
      file.contents,
    ]),
  );
}

/** Returns the compressed copies that are smaller than the file: [suffix, bytes]. */
function compress(contents) {
  const { constants } = zlib;
  return [
    [".gz", zlib.gzipSync(contents, { level: constants.Z_BEST_COMPRESSION })],
    [
      ".br",
      zlib.brotliCompressSync(contents, {
        params: {
          [constants.BROTLI_PARAM_QUALITY]:
            contents.length < LARGE_BYTES ? constants.BROTLI_MAX_QUALITY : LARGE_FILE_QUALITY,
          [constants.BROTLI_PARAM_SIZE_HINT]: contents.length,
        },
      }),
    ],
  ].filter(([, compressed]) => compressed.length < contents.length);
}

/** Writes a file atomically, because a server may be reading it. */
async function writeAtomically(file, contents) {
  const temporary = path.join(
    path.dirname(file),
    `.${path.basename(file)}.${crypto.randomBytes(4).toString("hex")}.tmp`,
  );
  await fs.mkdir(path.dirname(file), { recursive: true });
  try {
    await fs.writeFile(temporary, contents);
    await fs.rename(temporary, file);
  } catch (error) {
    await fs.rm(temporary, { force: true });
    throw error;
  }
}

async function readManifest(file) {
  try {
    return JSON.parse(await fs.readFile(file, "utf8"));
  } catch {
    return {}; // The manifest is missing or invalid; this build writes a new one.
  }
}

/** Removes files of previous builds that the manifests name, and nothing else. */
async function removeOldFiles(outdir, plainNames, current) {
  const published = await fs.stat(path.join(outdir, RELEASES)).catch(() => null);
  if (published) return;
  for (const file of await listFiles(outdir)) {
    const name = path.relative(outdir, file).split(path.sep).join("/");
    const plain = name.replace(/\.(gz|br)$/, "").replace(DIGEST, "");
    if (DIGEST.test(name) && plainNames.has(plain) && !current.has(name)) {
      await fs.rm(file, { force: true });
    }
  }
}

async function build({ outdir, manifest, watch }) {
  const started = performance.now();
  const files = await bundle();
  const written = new Set();
  const names = {};
  for (const name of [...files.keys()].sort()) {
    const contents = files.get(name);
    names[name.replace(DIGEST, "")] = name;
    // The digest in the name identifies the content, so an existing file and its copies are complete.
    // Skipping it saves most of the build time: compressing Swagger UI is slow.
    const existing = await fs.stat(path.join(outdir, name)).catch(() => null);
    if (existing?.size === contents.length) {
      for (const suffix of ["", ".gz", ".br"]) written.add(name + suffix);
      continue;
    }
    // Write the compressed copies first, so that they exist when the file can be served.
    const siblings = COMPRESSIBLE.test(name) ? compress(contents) : [];
    for (const [suffix, bytes] of [...siblings, ["", contents]]) {
      await writeAtomically(path.join(outdir, name + suffix), bytes);
      written.add(name + suffix);
    }
  }
  const sorted = Object.fromEntries(Object.keys(names).sort().map((key) => [key, names[key]]));
  const previous = await readManifest(manifest);
  await writeAtomically(manifest, `${JSON.stringify(sorted, null, 2)}\n`);
  if (!watch) {
    const plainNames = new Set([...Object.keys(previous), ...Object.keys(sorted)]);
    await removeOldFiles(outdir, plainNames, written);
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const shown = path.relative(process.cwd(), outdir) || ".";
  console.log(`built ${files.size} assets into ${shown} in ${seconds} s`);
}

function report(error) {
  if (error instanceof BuildError) {
    console.error(`build failed: ${error.message}`);
  } else if (error.syscall) {
    console.error(`build failed: ${error.message}`); // The message contains the path.
  } else {
    console.error("build failed:", error);
  }
}

/** Returns names, modification times and sizes of the sources, for comparison. */
async function snapshot() {
  const files = await listFiles(ASSETS);
  const stats = await Promise.all(files.map((file) => fs.stat(file).catch(() => null)));
  return files.map((file, index) => `${file} ${stats[index]?.mtimeMs} ${stats[index]?.size}`).join();
}

async function watchSources(options) {
  const stop = () => process.exit(0);
  process.on("SIGINT", stop).on("SIGTERM", stop);
  // stdin is a pipe from the parent process, which closes when the parent dies, even if it is killed.
  // Do not read from a terminal: that would stop a background job.
  if (!process.stdin.isTTY) process.stdin.on("end", stop).on("error", stop).resume();
  // Polling a few files is cheap and works on every file system, unlike fs.watch.
  for (let seen = null; ; await timers.setTimeout(POLL_MILLISECONDS)) {
    const current = await snapshot().catch(String); // a directory may be deleted meanwhile
    if (current === seen) continue;
    seen = current;
    await build(options).catch(report);
  }
}

const node = process.versions.node;
if (Number.parseInt(node, 10) < OLDEST_NODE) {
  console.error(`build.mjs requires Node ${OLDEST_NODE} or later, but this is Node ${node}`);
  process.exit(1);
}

let options;
try {
  options = readOptions(process.argv.slice(2));
} catch (error) {
  console.error(`build.mjs: ${error.message.split(". ")[0]} (see --help)`);
  process.exit(2);
}

if (options.help) {
  process.stdout.write(HELP);
} else {
  try {
    await (options.watch ? watchSources(options) : build(options));
  } catch (error) {
    report(error);
    process.exitCode = 1;
  }
}

const path = require("path");
const MiniCssExtractPlugin = require("mini-css-extract-plugin");

// Writes manifest.json, which maps names to digested file names.
class Manifest {
  apply(compiler) {
    compiler.hooks.thisCompilation.tap("Manifest", (compilation) => {
      const stage = compiler.webpack.Compilation.PROCESS_ASSETS_STAGE_REPORT;
      compilation.hooks.processAssets.tap({ name: "Manifest", stage }, () => {
        const names = {};
        for (const [name, entry] of compilation.entrypoints) {
          for (const file of entry.getFiles()) names[name + path.extname(file)] = file;
        }
        const source = new compiler.webpack.sources.RawSource(JSON.stringify(names));
        compilation.emitAsset("manifest.json", source);
      });
    });
  }
}

module.exports = {
  entry: { main: ["./assets/main.js", "./assets/main.scss"] },
  output: {
    path: path.resolve(__dirname, "flask_app/static"),
    filename: "[name].[contenthash].js",
  },
  cache: false, // node_modules is read-only in the deploy hook
  performance: { hints: false },
  module: {
    rules: [
      {
        test: /\.scss$/,
        use: [
          MiniCssExtractPlugin.loader,
          "css-loader",
          {
            loader: "sass-loader",
            options: {
              sassOptions: { quietDeps: true, silenceDeprecations: ["import"] },
            },
          },
        ],
      },
    ],
  },
  plugins: [new MiniCssExtractPlugin({ filename: "[name].[contenthash].css" }), new Manifest()],
};

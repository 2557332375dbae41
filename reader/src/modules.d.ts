declare module "*/decodewasm" {
  const url: string;
  export default url;
}
declare module "*/wasm" {
  const url: string;
  export default url;
}
declare module "*.wasm" {
  const url: string;
  export default url;
}
declare module "*/decodewasmjs";
declare module "@cornerstonejs/codec-openjph";
declare module "jpeg-lossless-decoder-js" {
  export class Decoder {
    decompress(buffer: ArrayBufferLike, offset: number, length: number): ArrayBuffer;
  }
}

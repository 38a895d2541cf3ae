"""The TensorFlow operations that a model may have: those that compute, and keep to themselves.

An allowlist: TensorFlow registers some 1,900 operations, each release adds to them, and among them
are ones that read and write files, call Python, open sockets or end the process. What is not here
is refused by its name, whether it is known to do harm or not known at all. Not here either, though
they are harmless by design, are parsers of foreign bytes (pictures, records, protocol buffers):
their outputs can be audited without them.

Loops are here, and so are loops without end: the time that opening a file may take is bounded by
the separate process that opens it, not by what is in its graph.
"""

from collections.abc import Iterable

# What they are for -> names. TensorFlow's registry says that these only compute.
_COMPUTING = {
    "constants, inputs, and what hands values on": """
        Bitcast Cast Const ControlTrigger EnsureShape FakeParam Identity IdentityN NoOp
        Placeholder PlaceholderV2 PlaceholderWithDefault PreventGradient RefIdentity Snapshot
        StopGradient ToBool
    """,
    "control flow, and calls of functions (which are looked at too)": """
        Enter Exit For LoopCond Merge NextIteration PartitionedCall RefEnter RefExit RefMerge
        RefNextIteration RefSelect RefSwitch StatelessCase StatelessIf StatelessWhile Switch
    """,
    "arithmetic": """
        Abs AccumulateNV2 Add AddN AddV2 Angle Ceil ClipByValue Complex ComplexAbs Conj Cross Div
        DivNoNan Exp Expm1 Floor FloorDiv FloorMod Imag Inv InvGrad Log Log1p Maximum Minimum Mod
        Mul MulNoNan Neg NextAfter Pow Real RealDiv Reciprocal ReciprocalGrad Rint Round Rsqrt
        RsqrtGrad Sign Sqrt SqrtGrad Square SquaredDifference Sub TruncateDiv TruncateMod Xdivy
        Xlog1py Xlogy
    """,
    "trigonometry and special functions": """
        Acos Acosh Asin Asinh Atan Atan2 Atanh BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0
        BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 BesselY1 Betainc Cos Cosh Dawsn
        Digamma Erf Erfc Erfinv Expint FresnelCos FresnelSin Igamma IgammaGradA Igammac Lgamma
        Ndtri Polygamma Sin Sinh Spence Tan Tanh TanhGrad Zeta
    """,
    "comparisons, logic and bits": """
        ApproximateEqual BitwiseAnd BitwiseOr BitwiseXor Equal Greater GreaterEqual Invert
        IsFinite IsInf IsNan LeftShift Less LessEqual LogicalAnd LogicalNot LogicalOr NotEqual
        PopulationCount RightShift Select SelectV2
    """,
    "reductions, sums over segments, order": """
        All Any ApproxTopK ArgMax ArgMin Bincount Bucketize Cumprod Cumsum CumulativeLogsumexp
        DenseBincount EuclideanNorm HistogramFixedWidth InTopK InTopKV2 IsotonicRegression
        KthOrderStatistic ListDiff LowerBound Max Mean Min NthElement Prod RaggedBincount
        SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2
        SegmentSum SegmentSumV2 SparseBincount SparseSegmentMean SparseSegmentMeanGrad
        SparseSegmentMeanGradV2 SparseSegmentMeanWithNumSegments SparseSegmentSqrtN
        SparseSegmentSqrtNGrad SparseSegmentSqrtNGradV2 SparseSegmentSqrtNWithNumSegments
        SparseSegmentSum SparseSegmentSumGrad SparseSegmentSumGradV2
        SparseSegmentSumWithNumSegments Sum TopK TopKV2 Unique UniqueV2 UniqueWithCounts
        UniqueWithCountsV2 UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
        UnsortedSegmentSum UpperBound
    """,
    "shapes, slices, layout": """
        BatchToSpace BatchToSpaceND BroadcastArgs BroadcastGradientArgs BroadcastTo Concat
        ConcatOffset ConcatV2 ConjugateTranspose DataFormatDimMap DataFormatVecPermute
        DepthToSpace Diag DiagPart DynamicPartition DynamicStitch EditDistance ExpandDims Fill
        Gather GatherNd GatherV2 InplaceAdd InplaceSub InplaceUpdate InvertPermutation LinSpace
        MirrorPad MirrorPadGrad OneHot OnesLike Pack Pad PadV2 ParallelConcat
        ParallelDynamicStitch Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd
        ScatterNdNonAliasingAdd Shape ShapeN Size Slice SpaceToBatch SpaceToBatchND SpaceToDepth
        Split SplitV Squeeze StridedSlice StridedSliceGrad TensorScatterAdd TensorScatterMax
        TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile
        TileGrad Transpose Unpack UnravelIndex Where ZerosLike
    """,
    "matrices": """
        BandedTriangularSolve BatchCholesky BatchCholeskyGrad BatchMatMul BatchMatMulV2
        BatchMatMulV3 BatchMatrixBandPart BatchMatrixDeterminant BatchMatrixDiag
        BatchMatrixDiagPart BatchMatrixInverse BatchMatrixSetDiag BatchMatrixSolve
        BatchMatrixSolveLs BatchMatrixTriangularSolve BatchSelfAdjointEig BatchSelfAdjointEigV2
        BatchSvd Cholesky CholeskyGrad Eig Einsum LogMatrixDeterminant Lu MatMul MatrixBandPart
        MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2
        MatrixDiagV3 MatrixExponential MatrixInverse MatrixLogarithm MatrixSetDiag MatrixSetDiagV2
        MatrixSetDiagV3 MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Qr
        SelfAdjointEig SelfAdjointEigV2 Svd TridiagonalMatMul TridiagonalSolve
    """,
    "layers of networks": """
        AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BatchNormWithGlobalNormalization
        BatchNormWithGlobalNormalizationGrad BiasAdd BiasAddGrad BiasAddV1 BlockLSTM BlockLSTMGrad
        BlockLSTMGradV2 BlockLSTMV2 CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss CTCLossV2 Conv
        Conv2D Conv2DBackpropFilter Conv2DBackpropFilterV2 Conv2DBackpropInput
        Conv2DBackpropInputV2 Conv3D Conv3DBackpropFilter Conv3DBackpropFilterV2
        Conv3DBackpropInput Conv3DBackpropInputV2 CudnnRNNCanonicalToParams
        CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize CudnnRNNParamsToCanonical
        CudnnRNNParamsToCanonicalV2 DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
        DepthwiseConv2dNativeBackpropInput Dilation2D Dilation2DBackpropFilter
        Dilation2DBackpropInput Elu EluGrad FractionalAvgPool FractionalAvgPoolGrad
        FractionalMaxPool FractionalMaxPoolGrad FusedBatchNorm FusedBatchNormGrad
        FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 FusedPadConv2D
        FusedResizeAndPadConv2D GRUBlockCell GRUBlockCellGrad L2Loss LRN LRNGrad LSTMBlockCell
        LSTMBlockCellGrad LeakyRelu LeakyReluGrad LogSoftmax MaxPool MaxPool3D MaxPool3DGrad
        MaxPool3DGradGrad MaxPoolGrad MaxPoolGradGrad MaxPoolGradGradV2 MaxPoolGradGradWithArgmax
        MaxPoolGradV2 MaxPoolGradWithArgmax MaxPoolV2 MaxPoolWithArgmax Relu Relu6 Relu6Grad
        ReluGrad Selu SeluGrad Sigmoid SigmoidGrad Softmax SoftmaxCrossEntropyWithLogits Softplus
        SoftplusGrad Softsign SoftsignGrad SparseSoftmaxCrossEntropyWithLogits
    """,
    "pictures that are arrays already": """
        AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression
        CropAndResize CropAndResizeGradBoxes CropAndResizeGradImage DrawBoundingBoxes
        DrawBoundingBoxesV2 ExtractGlimpse ExtractGlimpseV2 ExtractImagePatches
        ExtractVolumePatches GenerateBoundingBoxProposals HSVToRGB ImageProjectiveTransformV2
        ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
        NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps RGBToHSV ResizeArea
        ResizeBicubic ResizeBicubicGrad ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor
        ResizeNearestNeighborGrad ScaleAndTranslate ScaleAndTranslateGrad
    """,
    "sound and signals that are arrays already": """
        AudioSpectrogram BatchFFT BatchFFT2D BatchFFT3D BatchIFFT BatchIFFT2D BatchIFFT3D FFT
        FFT2D FFT3D FFTND IFFT IFFT2D IFFT3D IFFTND IRFFT IRFFT2D IRFFT3D IRFFTND Mfcc RFFT RFFT2D
        RFFT3D RFFTND
    """,
    "quantised numbers": """
        Dequantize FakeQuantWithMinMaxArgs FakeQuantWithMinMaxArgsGradient FakeQuantWithMinMaxVars
        FakeQuantWithMinMaxVarsGradient FakeQuantWithMinMaxVarsPerChannel
        FakeQuantWithMinMaxVarsPerChannelGradient QuantizeAndDequantize QuantizeAndDequantizeV2
        QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeAndDequantizeV4Grad
        QuantizeDownAndShrinkRange QuantizeV2 QuantizedAdd QuantizedAvgPool
        QuantizedBatchNormWithGlobalNormalization QuantizedBiasAdd QuantizedConcat
        QuantizedConcatV2 QuantizedConv2D QuantizedConv2DAndRelu
        QuantizedConv2DAndReluAndRequantize QuantizedConv2DAndRequantize QuantizedConv2DPerChannel
        QuantizedConv2DWithBias QuantizedConv2DWithBiasAndRelu
        QuantizedConv2DWithBiasAndReluAndRequantize QuantizedConv2DWithBiasAndRequantize
        QuantizedConv2DWithBiasSignedSumAndReluAndRequantize QuantizedConv2DWithBiasSumAndRelu
        QuantizedConv2DWithBiasSumAndReluAndRequantize QuantizedDepthwiseConv2D
        QuantizedDepthwiseConv2DWithBias QuantizedDepthwiseConv2DWithBiasAndRelu
        QuantizedDepthwiseConv2DWithBiasAndReluAndRequantize QuantizedInstanceNorm QuantizedMatMul
        QuantizedMatMulWithBias QuantizedMatMulWithBiasAndDequantize
        QuantizedMatMulWithBiasAndRelu QuantizedMatMulWithBiasAndReluAndRequantize
        QuantizedMatMulWithBiasAndRequantize QuantizedMaxPool QuantizedMul QuantizedRelu
        QuantizedRelu6 QuantizedReluX QuantizedReshape QuantizedResizeBilinear RequantizationRange
        RequantizationRangePerChannel Requantize RequantizePerChannel StochasticCastToInt
        UniformDequantize UniformQuantize UniformQuantizedAdd UniformQuantizedClipByValue
        UniformQuantizedConvolution UniformQuantizedConvolutionHybrid UniformQuantizedDot
        UniformQuantizedDotHybrid UniformRequantize
    """,
    "sparse and ragged arrays": """
        CSRSparseMatrixComponents CSRSparseMatrixToDense CSRSparseMatrixToSparseTensor
        DenseCountSparseOutput DenseToCSRSparseMatrix DenseToDenseSetOperation
        DenseToSparseSetOperation RaggedCountSparseOutput RaggedCross RaggedFillEmptyRows
        RaggedFillEmptyRowsGrad RaggedGather RaggedRange RaggedTensorFromVariant
        RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant
        RaggedTensorToVariantGradient SetSize SparseAdd SparseAddGrad SparseConcat
        SparseCountSparseOutput SparseCross SparseCrossHashed SparseCrossV2 SparseDenseCwiseAdd
        SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows SparseFillEmptyRowsGrad
        SparseMatMul SparseMatrixAdd SparseMatrixMatMul SparseMatrixMul SparseMatrixNNZ
        SparseMatrixOrderingAMD SparseMatrixSoftmax SparseMatrixSoftmaxGrad
        SparseMatrixSparseCholesky SparseMatrixSparseMatMul SparseMatrixTranspose
        SparseMatrixZeros SparseReduceMax SparseReduceMaxSparse SparseReduceSum
        SparseReduceSumSparse SparseReorder SparseReshape SparseSlice SparseSliceGrad
        SparseSoftmax SparseSparseMaximum SparseSparseMinimum SparseSplit SparseTensorDenseAdd
        SparseTensorDenseMatMul SparseTensorToCSRSparseMatrix SparseToDense
        SparseToSparseSetOperation
    """,
    "lists and maps of tensors, as loops build them": """
        EmptyTensorList EmptyTensorMap OptionalFromValue OptionalGetValue OptionalHasValue
        OptionalNone TensorListConcat TensorListConcatLists TensorListConcatV2
        TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem
        TensorListLength TensorListPopBack TensorListPushBack TensorListPushBackBatch
        TensorListReserve TensorListResize TensorListScatter TensorListScatterIntoExistingList
        TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack TensorMapErase
        TensorMapHasKey TensorMapInsert TensorMapLookup TensorMapSize TensorMapStackKeys
    """,
    "random numbers from a seed that is given": """
        RandomGammaGrad RandomIndexShuffle SobolSample StatelessMultinomial
        StatelessParameterizedTruncatedNormal StatelessRandomBinomial StatelessRandomGammaV2
        StatelessRandomGammaV3 StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg
        StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomPoisson
        StatelessRandomUniform StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
        StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2
        StatelessSampleDistortedBoundingBox StatelessShuffle StatelessTruncatedNormal
        StatelessTruncatedNormalV2
    """,
    "text that names things: in messages, hashes, tokens": """
        AsString Fingerprint ReduceJoin RegexFullMatch RegexReplace ShardedFilename
        ShardedFilespec StaticRegexFullMatch StaticRegexReplace StringFormat StringJoin
        StringLength StringLower StringNGrams StringSplit StringSplitV2 StringStrip
        StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber
        StringUpper Substr UnsortedSegmentJoin
    """,
}
# Why they may run -> names. TensorFlow's registry says that these have state (or they take a
# reference to some): all of it is memory of this process.
_WITH_STATE = {
    "a variable: its value is in memory, and goes with the process": """
        Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp AssignVariableOp
        CountUpTo DestroyResourceOp DestroyTemporaryVariable DisableCopyOnRead
        IsResourceHandleRefCounting IsVariableInitialized ReadVariableOp ResourceCountUpTo
        ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterDiv ResourceScatterMax
        ResourceScatterMin ResourceScatterMul ResourceScatterNdAdd ResourceScatterNdMax
        ResourceScatterNdMin ResourceScatterNdSub ResourceScatterNdUpdate ResourceScatterSub
        ResourceScatterUpdate ResourceStridedSliceAssign ScatterAdd ScatterDiv ScatterMax
        ScatterMin ScatterMul ScatterNdAdd ScatterNdMax ScatterNdMin ScatterNdSub ScatterNdUpdate
        ScatterSub ScatterUpdate StridedSliceAssign TemporaryVariable VarHandleOp
        VarIsInitializedOp Variable VariableShape VariableV2
    """,
    "an optimiser's step: it changes variables": """
        ApplyAdaMax ApplyAdadelta ApplyAdagrad ApplyAdagradDA ApplyAdagradV2 ApplyAdam
        ApplyAddSign ApplyCenteredRMSProp ApplyFtrl ApplyFtrlV2 ApplyGradientDescent ApplyMomentum
        ApplyPowerSign ApplyProximalAdagrad ApplyProximalGradientDescent ApplyRMSProp
        ResourceApplyAdaMax ResourceApplyAdadelta ResourceApplyAdagrad ResourceApplyAdagradDA
        ResourceApplyAdagradV2 ResourceApplyAdam ResourceApplyAdamWithAmsgrad ResourceApplyAddSign
        ResourceApplyCenteredRMSProp ResourceApplyFtrl ResourceApplyFtrlV2
        ResourceApplyGradientDescent ResourceApplyKerasMomentum ResourceApplyMomentum
        ResourceApplyPowerSign ResourceApplyProximalAdagrad ResourceApplyProximalGradientDescent
        ResourceApplyRMSProp ResourceSparseApplyAdadelta ResourceSparseApplyAdagrad
        ResourceSparseApplyAdagradDA ResourceSparseApplyAdagradV2
        ResourceSparseApplyCenteredRMSProp ResourceSparseApplyFtrl ResourceSparseApplyFtrlV2
        ResourceSparseApplyKerasMomentum ResourceSparseApplyMomentum
        ResourceSparseApplyProximalAdagrad ResourceSparseApplyProximalGradientDescent
        ResourceSparseApplyRMSProp SparseApplyAdadelta SparseApplyAdagrad SparseApplyAdagradDA
        SparseApplyAdagradV2 SparseApplyCenteredRMSProp SparseApplyFtrl SparseApplyFtrlV2
        SparseApplyMomentum SparseApplyProximalAdagrad SparseApplyProximalGradientDescent
        SparseApplyRMSProp
    """,
    "it draws random numbers, from a generator in the process": """
        Multinomial NonDeterministicInts ParameterizedTruncatedNormal RandomCrop RandomGamma
        RandomPoisson RandomPoissonV2 RandomShuffle RandomStandardNormal RandomUniform
        RandomUniformInt RngReadAndSkip RngSkip SampleDistortedBoundingBox
        SampleDistortedBoundingBoxV2 StatefulRandomBinomial StatefulStandardNormal
        StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt
        StatefulUniformInt TruncatedNormal
    """,
    "it tells which generator the device has": """
        StatelessRandomGetAlg
    """,
    "a table in memory, filled with the graph's own tensors": """
        AnonymousHashTable AnonymousMutableDenseHashTable AnonymousMutableHashTable
        AnonymousMutableHashTableOfTensors HashTable HashTableV2 InitializeTable InitializeTableV2
        LookupTableExport LookupTableExportV2 LookupTableFind LookupTableFindV2 LookupTableImport
        LookupTableImportV2 LookupTableInsert LookupTableInsertV2 LookupTableRemoveV2
        LookupTableSize LookupTableSizeV2 MutableDenseHashTable MutableDenseHashTableV2
        MutableHashTable MutableHashTableOfTensors MutableHashTableOfTensorsV2 MutableHashTableV2
    """,
    "an array of tensors in memory, as loops build one": """
        TensorArray TensorArrayClose TensorArrayCloseV2 TensorArrayCloseV3 TensorArrayConcat
        TensorArrayConcatV2 TensorArrayConcatV3 TensorArrayGather TensorArrayGatherV2
        TensorArrayGatherV3 TensorArrayGrad TensorArrayGradV2 TensorArrayGradV3
        TensorArrayGradWithShape TensorArrayPack TensorArrayRead TensorArrayReadV2
        TensorArrayReadV3 TensorArrayScatter TensorArrayScatterV2 TensorArrayScatterV3
        TensorArraySize TensorArraySizeV2 TensorArraySizeV3 TensorArraySplit TensorArraySplitV2
        TensorArraySplitV3 TensorArrayUnpack TensorArrayV2 TensorArrayV3 TensorArrayWrite
        TensorArrayWriteV2 TensorArrayWriteV3
    """,
    "a stack of tensors in memory, as gradients of loops build one": """
        Stack StackClose StackCloseV2 StackPop StackPopV2 StackPush StackPushV2 StackV2
    """,
    "it calls functions of the model, whose operations are looked at too": """
        Case If StatefulPartitionedCall While
    """,
    "it stops the call with an error": """
        Assert CheckNumerics CheckNumericsV2
    """,
    "marked as having state so that nothing is optimised away; it hands its input on": """
        DeepCopy GuaranteeConst
    """,
    "memory that is not filled yet": """
        Empty
    """,
    "it tells how the process is set up": """
        DeviceIndex IsTensorFloat32Enabled
    """,
    "a recurrent network in NVIDIA's library, with a generator for its dropout": """
        CudnnRNN CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3 CudnnRNNV2 CudnnRNNV3
    """,
}

STATEFUL = {name: reason for reason, names in _WITH_STATE.items() for name in names.split()}
ALLOWED = frozenset(STATEFUL).union(*(names.split() for names in _COMPUTING.values()))


def refused(names: Iterable[str]) -> list[str]:
    """The operations of these that are not on the list, in order of their names."""
    return sorted(set(names) - ALLOWED)

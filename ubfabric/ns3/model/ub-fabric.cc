// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-fabric.h"

#include "ub-net-device.h"
#include "ub-plane-parts.h"
#include "ub-windows.h"
#include "ub-workers.h"

#include "ns3/abort.h"
#include "ns3/boolean.h"
#include "ns3/double.h"
#include "ns3/enum.h"
#include "ns3/log.h"
#include "ns3/node-list.h"
#include "ns3/node.h"
#include "ns3/packet.h"
#include "ns3/pointer.h"
#include "ns3/simulator.h"
#include "ns3/string.h"
#include "ns3/uinteger.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

namespace ns3
{

NS_LOG_COMPONENT_DEFINE("UbFabric");

NS_OBJECT_ENSURE_REGISTERED(UbFabric);

namespace
{

/// How far ahead the flows of deliveries are fetched; their receivers half as far.
constexpr size_t DELIVERIES_AHEAD = 8;

/// Parts of planes for each thread: with one, a thread that is at the endpoints leaves the others
/// waiting for its part.
constexpr uint32_t PARTS_PER_THREAD = 2;

/// Steps of a part that together have to be worth what a window must be to wake threads: in a
/// step they are awake.
constexpr uint64_t STEPS_WORTH_A_WINDOW = 8;

/**
 * Make an object from text as ObjectFactory reads it.
 * @tparam Base What it must be.
 * @param [in] text A TypeId with attributes, such as ns3::UbPosted[HeaderBytes=28].
 * @return The object, nullptr for an empty text.
 */
template <class Base>
Ptr<Base>
MakeFromText(const std::string& text)
{
    if (text.empty())
    {
        return nullptr;
    }
    TypeId type;
    const std::string name = text.substr(0, text.find('['));
    NS_ABORT_MSG_IF(!TypeId::LookupByNameFailSafe(name, &type) ||
                        !type.IsChildOf(Base::GetTypeId()) || !type.HasConstructor(),
                    name << " is no " << Base::GetTypeId().GetName());
    std::istringstream stream(text);
    ObjectFactory factory;
    stream >> factory;
    NS_ABORT_MSG_IF(stream.fail(), text << " has attributes that " << name << " does not");
    return factory.Create<Base>();
}

} // namespace

class UbFabric::Observer : public UbPlaneObserver
{
  public:
    /// @param [in] fabric Whose trace sources to fire.
    explicit Observer(UbFabric& fabric)
        : m_fabric(fabric)
    {
    }

    void PacketSent(int64_t /* nowPs */, uint32_t link, uint32_t flow, uint32_t bytes) override
    {
        m_fabric.m_packetSent(link, flow, bytes);
    }

    void PacketDelivered(int64_t /* nowPs */, uint32_t link, uint32_t flow, uint32_t bytes) override
    {
        m_fabric.m_packetDelivered(link, flow, bytes);
    }

    void CreditStall(int64_t /* nowPs */, uint32_t link) override
    {
        m_fabric.m_creditStall(link);
    }

    void Retried(int64_t /* nowPs */, uint32_t link, uint32_t flow) override
    {
        m_fabric.m_retried(link, flow);
    }

    void LinkChanged(int64_t /* nowPs */, uint32_t link, uint64_t bytesPerS) override
    {
        m_fabric.m_linkChanged(link, bytesPerS);
    }

  private:
    UbFabric& m_fabric; //!< whose trace sources to fire
};

TypeId
UbFabric::GetTypeId()
{
    static TypeId tid =
        TypeId("ns3::UbFabric")
            .SetParent<Object>()
            .SetGroupName("UbFabric")
            .AddConstructor<UbFabric>()
            .AddAttribute("PayloadBytes",
                          "Most bytes of a message that one packet carries.",
                          UintegerValue(4096),
                          MakeUintegerAccessor(&UbFabric::m_payloadBytes),
                          MakeUintegerChecker<uint32_t>(1, 60000))
            .AddAttribute("FlitBytes",
                          "Bytes of a flit on UB links; 0: packets are not cut into flits.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbFabric::m_flitBytes),
                          MakeUintegerChecker<uint32_t>(0, 1024))
            .AddAttribute("BlockFlits",
                          "Most flits of a block on UB links.",
                          UintegerValue(32),
                          MakeUintegerAccessor(&UbFabric::m_blockFlits),
                          MakeUintegerChecker<uint32_t>(1, 1024))
            .AddAttribute("BlockHeaderBytes",
                          "Header of every block but a packet's first on UB links.",
                          UintegerValue(2),
                          MakeUintegerAccessor(&UbFabric::m_blockHeaderBytes),
                          MakeUintegerChecker<uint32_t>(0, 64))
            .AddAttribute("BlockCheckBytes",
                          "Check at the end of every block on UB links.",
                          UintegerValue(4),
                          MakeUintegerAccessor(&UbFabric::m_blockCheckBytes),
                          MakeUintegerChecker<uint32_t>(0, 64))
            .AddAttribute("UbTransport",
                          "Transport of the UB network: a TypeId below ns3::UbTransport, with "
                          "attributes as in ns3::UbPosted[HeaderBytes=28|RetryLimit=3].",
                          StringValue("ns3::UbPosted"),
                          MakeStringAccessor(&UbFabric::m_ubTransport),
                          MakeStringChecker())
            .AddAttribute("RdmaTransport",
                          "Transport of the RDMA network, likewise.",
                          StringValue("ns3::UbPosted"),
                          MakeStringAccessor(&UbFabric::m_rdmaTransport),
                          MakeStringChecker())
            .AddAttribute("VpcTransport",
                          "Transport of the VPC network, likewise.",
                          StringValue("ns3::UbPosted"),
                          MakeStringAccessor(&UbFabric::m_vpcTransport),
                          MakeStringChecker())
            .AddAttribute("UbCongestion",
                          "Congestion control of the UB network: a TypeId below "
                          "ns3::UbCongestionControl with attributes, or nothing.",
                          StringValue(""),
                          MakeStringAccessor(&UbFabric::m_ubCongestion),
                          MakeStringChecker())
            .AddAttribute("RdmaCongestion",
                          "Congestion control of the RDMA network, likewise.",
                          StringValue(""),
                          MakeStringAccessor(&UbFabric::m_rdmaCongestion),
                          MakeStringChecker())
            .AddAttribute("VpcCongestion",
                          "Congestion control of the VPC network, likewise.",
                          StringValue(""),
                          MakeStringAccessor(&UbFabric::m_vpcCongestion),
                          MakeStringChecker())
            .AddAttribute("Threads",
                          "Threads that run the planes; the results do not depend on it.",
                          UintegerValue(1),
                          MakeUintegerAccessor(&UbFabric::m_nThreads),
                          MakeUintegerChecker<uint32_t>(1, 256))
            .AddAttribute("ThreadHops",
                          "Packet-hops of a window that make it worth while to wake them.",
                          UintegerValue(500),
                          MakeUintegerAccessor(&UbFabric::m_threadHops),
                          MakeUintegerChecker<uint64_t>(1))
            .AddAttribute("NumVirtualLanes",
                          "Virtual lanes of each port, each with a buffer and credits of its own.",
                          UintegerValue(1),
                          MakeUintegerAccessor(&UbFabric::m_nLanes),
                          MakeUintegerChecker<uint32_t>(1, 16))
            .AddAttribute("CellBytes",
                          "Unit of buffers and credits of UB links; 1 counts bytes.",
                          UintegerValue(1),
                          MakeUintegerAccessor(&UbFabric::m_cellBytes),
                          MakeUintegerChecker<uint32_t>(1, 2560))
            .AddAttribute("CreditReturn",
                          "How credits of UB links come back: Ideal (for nothing), Control (a "
                          "control block each) or Piggyback (on the next packet, or in a control "
                          "block after CreditTimeout).",
                          EnumValue(UB_CREDIT_IDEAL),
                          MakeEnumAccessor<UbCreditReturn>(&UbFabric::m_creditReturn),
                          MakeEnumChecker(UB_CREDIT_IDEAL,
                                          "Ideal",
                                          UB_CREDIT_CONTROL,
                                          "Control",
                                          UB_CREDIT_PIGGYBACK,
                                          "Piggyback"))
            .AddAttribute("CreditGrainCells",
                          "Cells that a packet header counts credits in.",
                          UintegerValue(1),
                          MakeUintegerAccessor(&UbFabric::m_creditGrain),
                          MakeUintegerChecker<uint32_t>(1, 255))
            .AddAttribute("CreditTimeout",
                          "How long credits wait for a packet to ride on.",
                          TimeValue(NanoSeconds(200)),
                          MakeTimeAccessor(&UbFabric::m_creditTimeout),
                          MakeTimeChecker(Time(0), MicroSeconds(1000)))
            .AddAttribute("ControlBytes",
                          "Bytes of a control block that carries credits or asks for a retry.",
                          UintegerValue(20),
                          MakeUintegerAccessor(&UbFabric::m_controlBytes),
                          MakeUintegerChecker<uint32_t>(1, 640))
            .AddAttribute("ShareBuffer",
                          "Whether the lanes of a UB port share its buffer, but for LaneFloorCells "
                          "each; the buffer then is the port's, not the lane's.",
                          BooleanValue(false),
                          MakeBooleanAccessor(&UbFabric::m_sharesBuffer),
                          MakeBooleanChecker())
            .AddAttribute("LaneFloorCells",
                          "Cells that each lane has for itself when the buffer is shared.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbFabric::m_laneFloorCells),
                          MakeUintegerChecker<uint32_t>(0, 65535))
            .AddAttribute("LaneArbitration",
                          "How the lanes of a port take turns: RoundRobin, Strict (the highest "
                          "lane first) or Deficit (round robin by LaneWeights).",
                          EnumValue(UB_LANES_ROUND_ROBIN),
                          MakeEnumAccessor<UbLaneArbitration>(&UbFabric::m_arbitration),
                          MakeEnumChecker(UB_LANES_ROUND_ROBIN,
                                          "RoundRobin",
                                          UB_LANES_STRICT,
                                          "Strict",
                                          UB_LANES_DEFICIT,
                                          "Deficit"))
            .AddAttribute(
                "LaneWeights",
                "Weights of the lanes from lane 0 on, such as \"1 1 4\"; 1 where left out.",
                StringValue(""),
                MakeStringAccessor(&UbFabric::m_laneWeights),
                MakeStringChecker())
            .AddAttribute("QuantumBytes",
                          "Bytes that a lane of weight 1 may send in a turn; at least a packet.",
                          UintegerValue(10240),
                          MakeUintegerAccessor(&UbFabric::m_quantumBytes),
                          MakeUintegerChecker<uint32_t>(1))
            .AddAttribute("Allocator",
                          "How UB switches match inputs and outputs: Unlimited (an input feeds any "
                          "number of outputs), Islip, or OutputQueued (ideal, without limit).",
                          EnumValue(UB_ALLOCATOR_UNLIMITED),
                          MakeEnumAccessor<UbAllocator>(&UbFabric::m_allocator),
                          MakeEnumChecker(UB_ALLOCATOR_UNLIMITED,
                                          "Unlimited",
                                          UB_ALLOCATOR_ISLIP,
                                          "Islip",
                                          UB_ALLOCATOR_OUTPUT_QUEUED,
                                          "OutputQueued"))
            .AddAttribute("InputFifo",
                          "Whether an input has one queue a lane instead of one an output.",
                          BooleanValue(false),
                          MakeBooleanAccessor(&UbFabric::m_hasInputFifo),
                          MakeBooleanChecker())
            .AddAttribute("AllocatorIterations",
                          "Iterations of iSLIP.",
                          UintegerValue(1),
                          MakeUintegerAccessor(&UbFabric::m_iterations),
                          MakeUintegerChecker<uint32_t>(1, 64))
            .AddAttribute("Speedup",
                          "Rate at which the crossbar reads an input over the rate of the link.",
                          DoubleValue(1.0),
                          MakeDoubleAccessor(&UbFabric::m_speedup),
                          MakeDoubleChecker<double>(1.0, 64.0))
            .AddAttribute("RetryBufferBytes",
                          "Bytes that a UB link keeps until they are acknowledged; it sends no "
                          "more before. At least a packet; 0 for no limit.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbFabric::m_retryBufferBytes),
                          MakeUintegerChecker<uint64_t>())
            .AddAttribute("RetryLimit",
                          "Retries of a packet before the link trains anew, on half of its lanes.",
                          UintegerValue(15),
                          MakeUintegerAccessor(&UbFabric::m_retryLimit),
                          MakeUintegerChecker<uint32_t>(0))
            .AddAttribute("RetrainLimit",
                          "Trainings of a link before it is down.",
                          UintegerValue(4),
                          MakeUintegerAccessor(&UbFabric::m_retrainLimit),
                          MakeUintegerChecker<uint32_t>(0))
            .AddAttribute("RetrainTime",
                          "Time of a training.",
                          TimeValue(MicroSeconds(10)),
                          MakeTimeAccessor(&UbFabric::m_retrainTime),
                          MakeTimeChecker(Time(0)))
            .AddAttribute("MarkBytes",
                          "Bytes waiting for an output from which packets that may be marked are "
                          "marked for congestion; 0 for never.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbFabric::m_markBytes),
                          MakeUintegerChecker<uint64_t>())
            .AddAttribute("MarkAllBytes",
                          "Bytes waiting from which all are marked; in between the share rises to "
                          "MarkShare.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbFabric::m_markAllBytes),
                          MakeUintegerChecker<uint64_t>())
            .AddAttribute("MarkShare",
                          "Share of packets marked just below MarkAllBytes.",
                          DoubleValue(1.0),
                          MakeDoubleAccessor(&UbFabric::m_markShare),
                          MakeDoubleChecker<double>(0.0, 1.0))
            .AddAttribute("KeepAccount",
                          "Whether the time of each flow is kept by cause.",
                          BooleanValue(false),
                          MakeBooleanAccessor(&UbFabric::m_keepsAccount),
                          MakeBooleanChecker())
            .AddAttribute("SampleInterval",
                          "Time between looks at all links; 0 for none.",
                          TimeValue(Time(0)),
                          MakeTimeAccessor(&UbFabric::m_sampleInterval),
                          MakeTimeChecker(Time(0)))
            .AddAttribute("Watchdog",
                          "Time without any packet moving, while packets are inside, after which "
                          "the run is stopped; 0 for never.",
                          TimeValue(MilliSeconds(100)),
                          MakeTimeAccessor(&UbFabric::m_watchdog),
                          MakeTimeChecker(Time(0)))
            .AddAttribute("Seed",
                          "Seed of all hashes and random choices.",
                          UintegerValue(1),
                          MakeUintegerAccessor(&UbFabric::m_seed),
                          MakeUintegerChecker<uint64_t>())
            .AddAttribute("PathPolicy",
                          "How a switch picks among the shortest paths; a TypeId below "
                          "ns3::UbPathPolicy.",
                          StringValue("ns3::UbPathRoundRobin"),
                          MakeStringAccessor(&UbFabric::m_pathPolicy),
                          MakeStringChecker())
            .AddAttribute("PlanePolicy",
                          "How a source picks the plane of a packet; a TypeId below "
                          "ns3::UbPlanePolicy.",
                          StringValue("ns3::UbPlaneRoundRobin"),
                          MakeStringAccessor(&UbFabric::m_planePolicy),
                          MakeStringChecker())
            .AddAttribute("Exchange",
                          "How processes that run some of the planes each talk to each other; "
                          "nullptr: this one runs all.",
                          PointerValue(),
                          MakePointerAccessor(&UbFabric::m_exchange),
                          MakePointerChecker<UbPlaneExchange>())
            .AddTraceSource("PacketSent",
                            "A packet begins to leave on a link.",
                            MakeTraceSourceAccessor(&UbFabric::m_packetSent),
                            "ns3::UbFabric::PacketTracedCallback")
            .AddTraceSource("PacketDelivered",
                            "A packet's last byte is at the port of its endpoint.",
                            MakeTraceSourceAccessor(&UbFabric::m_packetDelivered),
                            "ns3::UbFabric::PacketTracedCallback")
            .AddTraceSource("CreditStall",
                            "A link has packets and no credit to send them.",
                            MakeTraceSourceAccessor(&UbFabric::m_creditStall),
                            "ns3::UbFabric::LinkTracedCallback")
            .AddTraceSource("PacketRetried",
                            "A bit error spoilt a packet; the link will send it again.",
                            MakeTraceSourceAccessor(&UbFabric::m_retried),
                            "ns3::UbFabric::RetryTracedCallback")
            .AddTraceSource("LinkChanged",
                            "A link went down, came back, or has another rate.",
                            MakeTraceSourceAccessor(&UbFabric::m_linkChanged),
                            "ns3::UbFabric::ChangeTracedCallback")
            .AddTraceSource("FlowFinished",
                            "A flow's last byte is seen by its receiver.",
                            MakeTraceSourceAccessor(&UbFabric::m_flowFinished),
                            "ns3::UbFabric::FlowTracedCallback");
    return tid;
}

UbFabric::UbFabric()
{
    NS_LOG_FUNCTION(this);
}

UbFabric::~UbFabric()
{
    NS_LOG_FUNCTION(this);
}

void
UbFabric::DoDispose()
{
    NS_LOG_FUNCTION(this);
    if (m_impl)
    {
        m_impl->RemoveProcess(this);
        m_impl = nullptr;
    }
    m_step.Cancel();
    m_windows.reset();
    m_workers.reset();
    m_partition.reset();
    m_exchange = nullptr;
    m_devicePackets.clear();
    m_sentHere.clear();
    m_sends.clear();
    m_tasks.reset();
    m_endpoints.reset();
    m_parts.clear();
    m_splits.clear();
    m_planes.clear();
    Object::DoDispose();
}

void
UbFabric::Build(const UbFabricArrays& arrays)
{
    NS_LOG_FUNCTION(this << arrays.nNodes << arrays.nLinks << arrays.nPlanes);
    NS_ABORT_MSG_IF(Time::GetResolution() != Time::PS,
                    "UbFabric needs Time::SetResolution(Time::PS) before the simulation");
    NS_ABORT_MSG_IF(!m_planes.empty(), "UbFabric::Build may be called once only");
    NS_ABORT_MSG_IF(arrays.nPlanes > UbEndpointProcess::MAX_PLANES,
                    "a fabric has " << UbEndpointProcess::MAX_PLANES << " planes at most");
    UbEndpointSettings settings;
    settings.seed = m_seed;
    settings.format = {m_flitBytes, m_blockFlits, m_blockHeaderBytes, m_blockCheckBytes};
    settings.transports = {MakeFromText<UbTransport>(m_ubTransport),
                           MakeFromText<UbTransport>(m_rdmaTransport),
                           MakeFromText<UbTransport>(m_vpcTransport)};
    settings.congestion = {MakeFromText<UbCongestionControl>(m_ubCongestion),
                           MakeFromText<UbCongestionControl>(m_rdmaCongestion),
                           MakeFromText<UbCongestionControl>(m_vpcCongestion)};
    settings.payloadBytes = m_payloadBytes;
    NS_ABORT_MSG_IF(m_flitBytes > 0 &&
                        m_flitBytes * m_blockFlits <= m_blockHeaderBytes + m_blockCheckBytes,
                    "a block has no room for payload");
    std::array<int64_t, UB_NETWORKS> packetBytes{};
    for (uint32_t network = 0; network < UB_NETWORKS; ++network)
    {
        NS_ABORT_MSG_IF(!settings.transports[network],
                        "network " << network << " needs a transport");
        const uint32_t bytes = m_payloadBytes + settings.transports[network]->MaxHeaderBytes();
        packetBytes[network] = network == 0 ? settings.format.WireBytes(bytes, 0) : bytes;
        NS_ABORT_MSG_IF(packetBytes[network] > 0xffff,
                        "a packet has 65,535 bytes on the wire at most");
    }
    for (uint32_t plane = 0; plane < arrays.nPlanes; ++plane)
    {
        NS_ABORT_MSG_IF(arrays.planeNetwork[plane] >= UB_NETWORKS,
                        "plane " << plane << " belongs to network " << arrays.planeNetwork[plane]
                                 << "; there are " << UB_NETWORKS);
    }
    for (uint32_t link = 0; link < arrays.nLinks; ++link)
    {
        NS_ABORT_MSG_IF(arrays.nodeBufferBytes[arrays.linkDst[link]] <
                            packetBytes[arrays.planeNetwork[arrays.linkPlane[link]]],
                        "the buffer of node " << arrays.linkDst[link]
                                              << " is smaller than a packet");
        NS_ABORT_MSG_IF(arrays.linkBytesPerS[link] == 0, "link " << link << " has no rate");
    }
    for (uint32_t node = 0; node < arrays.nNodes; ++node)
    {
        NS_ABORT_MSG_IF(arrays.nodeIsEndpoint[node] != 0 &&
                            (arrays.nodeReceiveLatencyPs[node] < 1 ||
                             arrays.nodeIssueEngines[node] < 1 ||
                             arrays.nodeIssueEngines[node] > UbEndpointProcess::MAX_ENGINES),
                        "endpoint " << node << " needs a receive latency and 1 to "
                                    << UbEndpointProcess::MAX_ENGINES << " engines");
    }
    m_nNodes = arrays.nNodes;
    m_nLinks = arrays.nLinks;

    ObjectFactory pathFactory;
    pathFactory.SetTypeId(m_pathPolicy);
    const auto path = pathFactory.Create<UbPathPolicy>();
    for (uint32_t plane = 0; plane < arrays.nPlanes; ++plane)
    {
        m_planes.push_back(
            path->MakePlane(arrays, plane, PlaneSettings(arrays.planeNetwork[plane]), {}));
        if (m_sampleInterval.IsStrictlyPositive())
        {
            m_planes.back()->KeepTime();
        }
    }
    m_linkPlane.assign(arrays.linkPlane, arrays.linkPlane + arrays.nLinks);
    m_nextSamplePs =
        m_sampleInterval.IsStrictlyPositive() ? m_sampleInterval.GetTimeStep() : UB_NEVER;
    ObjectFactory planeFactory;
    planeFactory.SetTypeId(m_planePolicy);
    const auto planePolicy = planeFactory.Create<UbPlanePolicy>();
    m_sendsByBacklog = planePolicy->LooksAtPorts();
    if (m_nThreads > arrays.nPlanes && !m_exchange && !path->LooksAtPorts() && CanSplit())
    {
        MakeParts(arrays, *path);
    }
    if (m_exchange)
    {
        NS_ABORT_MSG_IF(m_sendsByBacklog,
                        "PlanePolicy " << m_planePolicy
                                       << " looks at the ports of all planes; with Exchange no "
                                          "process has them all");
        m_partition = std::make_unique<UbPartition>(m_exchange, arrays.nPlanes);
        m_arrived.resize(arrays.nPlanes);
    }
    m_endpoints = std::make_unique<UbEndpointProcess>(arrays, settings, m_planes, planePolicy);
    m_tasks = std::make_unique<UbTaskGraph>(*m_endpoints);
    m_endpoints->SetTaskGraph(m_tasks.get());
    m_observer = std::make_unique<Observer>(*this);

    m_impl = DynamicCast<UbSimulatorImpl>(Simulator::GetImplementation());
    NS_ABORT_MSG_IF(IsSpread() && !m_impl, "SpreadNodes needs ns3::UbSimulatorImpl");
    for (uint32_t node = 0; m_partition && (IsSpread() || !m_impl) && node < m_nNodes; ++node)
    {
        // ordinary events run ahead by a window, which traffic that they begin must not shorten
        if (arrays.nodeIsEndpoint[node] != 0)
        {
            m_endpoints->Attend(node);
        }
    }
    if (m_impl)
    {
        m_impl->AddProcess(this);
    }
}

void
UbFabric::MakeParts(const UbFabricArrays& arrays, const UbPathPolicy& path)
{
    m_splits.resize(arrays.nPlanes);
    for (uint32_t plane = 0; plane < arrays.nPlanes; ++plane)
    {
        const UbPlaneSettings settings = PlaneSettings(arrays.planeNetwork[plane]);
        if (settings.isShared || settings.isFifo || settings.keepsAccount)
        {
            continue; // a packet or a credit more is seen at once there, at either end of a cable
        }
        const UbPlaneSplit split =
            UbSplitPlane(arrays,
                         plane,
                         (PARTS_PER_THREAD * m_nThreads + arrays.nPlanes - 1) / arrays.nPlanes,
                         m_threadHops / STEPS_WORTH_A_WINDOW);
        m_splits[plane].lookaheadPs = split.lookaheadPs;
        for (uint32_t part = 0; split.nParts > 1 && part < split.nParts; ++part)
        {
            m_splits[plane].parts.push_back(
                path.MakePlane(arrays, plane, settings, {split.ofNode, split.nParts, part}));
        }
    }
}

bool
UbFabric::CanSplit() const
{
    return !m_isObserved && !m_hasDevices && !m_sendsByBacklog && m_routeTimes.empty() &&
           m_nextSamplePs == UB_NEVER &&
           std::none_of(m_planes.begin(), m_planes.end(), [](const auto& plane) {
               return plane->Changes();
           });
}

void
UbFabric::Begin()
{
    m_hasBegun = true;
    const bool isSplit = !m_splits.empty() && CanSplit();
    std::vector<std::unique_ptr<UbPlane>> whole = std::exchange(m_planes, {});
    std::vector<UbPlanePart> processes;
    for (size_t plane = 0; plane < whole.size(); ++plane)
    {
        SplitPlane split;
        if (isSplit && !m_splits[plane].parts.empty())
        {
            split = std::move(m_splits[plane]);
        }
        else
        {
            split.parts.push_back(std::move(whole[plane]));
            split.lookaheadPs = UB_NEVER;
        }
        m_firstProcess.push_back(static_cast<uint32_t>(m_planes.size()));
        std::vector<UbPlane*> parts;
        for (auto& part : split.parts)
        {
            parts.push_back(part.get());
            processes.push_back(part->Part());
            m_planes.push_back(std::move(part));
        }
        m_parts.push_back(std::make_unique<UbPlaneParts>(std::move(parts), split.lookaheadPs));
    }
    m_splits.clear();
    if (isSplit)
    {
        m_endpoints->Split(processes);
    }
    if (m_nThreads > 1)
    {
        m_workers =
            std::make_unique<UbWorkers>(m_nThreads, 1 + static_cast<uint32_t>(m_planes.size()));
        m_windows =
            std::make_unique<UbWindows>(*m_endpoints,
                                        m_parts,
                                        *m_workers,
                                        [this](UbArrived& arrived) { TakeArrived(arrived); });
    }
}

int64_t
UbFabric::AddChunk(const UbChunkArrays& arrays)
{
    NS_LOG_FUNCTION(this << arrays.nFlows << arrays.nTasks);
    Settle();
    const int64_t id = m_tasks->AddChunk(arrays,
                                         m_tasks->NeedsChunk() ? m_endpoints->LastPs()
                                                               : Simulator::Now().GetTimeStep());
    Arm();
    return id;
}

int64_t
UbFabric::TakeCompleteChunk()
{
    return m_tasks->TakeComplete();
}

bool
UbFabric::NeedsChunk() const
{
    return m_tasks->NeedsChunk();
}

void
UbFabric::StopAfter(uint64_t packetHops)
{
    m_stopAtHops = packetHops == 0 ? 0 : GetPacketHops() + packetHops;
    m_hasPaused = false;
}

bool
UbFabric::HasPaused() const
{
    return m_hasPaused;
}

bool
UbFabric::Reaches(uint32_t src, uint32_t dst, uint32_t network) const
{
    // nothing reaches anything once the fabric is disposed of, while protocols say good-bye
    return m_endpoints && m_endpoints->Reaches(src, dst, network);
}

void
UbFabric::UpdateObservers()
{
    const bool isObserved = !m_packetSent.IsEmpty() || !m_packetDelivered.IsEmpty() ||
                            !m_creditStall.IsEmpty() || !m_retried.IsEmpty() ||
                            !m_linkChanged.IsEmpty() || !m_flowFinished.IsEmpty();
    if (isObserved == m_isObserved)
    {
        return;
    }
    m_isObserved = isObserved;
    for (auto& plane : m_planes)
    {
        plane->SetObserver(isObserved ? m_observer.get() : nullptr);
    }
    m_tasks->SetFlowHook(nullptr);
    if (isObserved)
    {
        m_tasks->SetFlowHook([this](const UbFlowRecord& flow, int64_t nowPs) {
            m_flowFinished(flow.src,
                           flow.dst,
                           uint64_t{flow.messages} * flow.messageBytes,
                           TimeStep(nowPs - flow.startPs));
        });
    }
}

UbPlaneSettings
UbFabric::PlaneSettings(uint32_t network) const
{
    UbPlaneSettings settings;
    settings.nLanes = m_nLanes;
    settings.seed = m_seed;
    settings.controlBytes = m_controlBytes;
    settings.retryLimit = m_retryLimit;
    settings.retrainLimit = m_retrainLimit;
    settings.retrainPs = m_retrainTime.GetTimeStep();
    settings.markBytes = m_markBytes;
    settings.markAllBytes = m_markAllBytes;
    settings.markShare = m_markShare;
    settings.keepsAccount = m_keepsAccount;
    settings.arbitration = m_arbitration;
    settings.quantumBytes = m_quantumBytes;
    std::istringstream weights(m_laneWeights);
    for (uint32_t weight; weights >> weight;)
    {
        settings.laneWeights.push_back(std::max<uint32_t>(1, weight));
    }
    const std::array congestion{&m_ubCongestion, &m_rdmaCongestion, &m_vpcCongestion};
    settings.grantsWindows =
        network < congestion.size() && congestion[network]->rfind("ns3::UbCaqm", 0) == 0;
    settings.grantQueueBytes = 10ULL * m_payloadBytes;
    settings.grantMarkBytes = m_payloadBytes / 2;
    if (network == 0)
    {
        settings.cellBytes = m_cellBytes;
        settings.retryBufferBytes = m_retryBufferBytes;
        settings.creditReturn = m_creditReturn;
        settings.creditGrain = m_creditGrain;
        settings.creditTimeoutPs = m_creditTimeout.GetTimeStep();
        settings.isShared = m_sharesBuffer;
        settings.laneFloorCells = m_laneFloorCells;
        settings.allocator = m_allocator;
        settings.isFifo = m_hasInputFifo;
        settings.iterations = m_iterations;
        settings.speedup = m_speedup;
    }
    return settings;
}

void
UbFabric::NeedWholePlanes() const
{
    NS_ABORT_MSG_IF(m_hasBegun && m_planes.size() > m_parts.size(),
                    "what changes in the course of a run is told before Simulator::Run, or the "
                    "attribute Threads is no more than the planes");
}

void
UbFabric::ScheduleLink(int64_t timePs, uint32_t link, uint64_t bytesPerS, double bitErrorRate)
{
    NS_LOG_FUNCTION(this << timePs << link << bytesPerS << bitErrorRate);
    NeedWholePlanes();
    m_planes[m_linkPlane[link]]->ScheduleLink(timePs, link, bytesPerS, bitErrorRate);
    if (m_partition)
    {
        m_partition->Expect(timePs);
    }
}

void
UbFabric::ScheduleSwitch(int64_t timePs, uint32_t node, bool isDead)
{
    NS_LOG_FUNCTION(this << timePs << node << isDead);
    NeedWholePlanes();
    for (auto& plane : m_planes)
    {
        plane->ScheduleLoss(timePs, node, isDead);
    }
    if (m_partition)
    {
        m_partition->Expect(timePs);
    }
}

void
UbFabric::ScheduleRoutes(int64_t timePs, const UbFabricArrays& arrays)
{
    NS_LOG_FUNCTION(this << timePs);
    NeedWholePlanes();
    for (auto& plane : m_planes)
    {
        plane->PrepareRoutes(arrays);
    }
    m_endpoints->CheckRoutes();
    m_routeTimes.push_back(timePs);
    Arm();
}

void
UbFabric::ReportBrokenLinks()
{
    m_reportsBroken = true;
}

std::vector<std::pair<uint32_t, int64_t>>
UbFabric::TakeBrokenLinks()
{
    std::vector<std::pair<uint32_t, int64_t>> broken;
    for (auto& plane : m_planes)
    {
        auto& list = plane->Broken();
        if (m_partition)
        {
            m_partition->Join(list);
        }
        broken.insert(broken.end(), list.begin(), list.end());
        list.clear();
    }
    return broken;
}

void
UbFabric::ReadStalled(std::vector<uint32_t>& links) const
{
    links.clear();
    std::vector<uint32_t> list;
    for (const auto& plane : m_planes)
    {
        list.clear();
        plane->ReadStalled(list);
        if (m_partition)
        {
            m_partition->Join(list);
        }
        links.insert(links.end(), list.begin(), list.end());
    }
}

bool
UbFabric::IsStalled() const
{
    return m_isStalled;
}

std::vector<UbFabric::Sample>&
UbFabric::Samples()
{
    return m_samples;
}

void
UbFabric::CatchUp(int64_t nextPs)
{
    while (m_nextSamplePs <= nextPs)
    {
        Sample sample{m_nextSamplePs,
                      std::vector<uint64_t>(m_nLinks, 0),
                      std::vector<uint64_t>(m_nLinks, 0)};
        for (const auto& plane : m_planes)
        {
            plane->Sample(sample.bytes.data(), sample.waitingBytes.data());
        }
        if (m_partition)
        {
            m_partition->Sum(sample.bytes);
            m_partition->Sum(sample.waitingBytes);
        }
        m_samples.push_back(std::move(sample));
        // while nothing happens one look is enough
        const int64_t intervalPs = m_sampleInterval.GetTimeStep();
        m_nextSamplePs += std::max<int64_t>(1, (nextPs - m_nextSamplePs) / intervalPs) * intervalPs;
    }
    while (!m_routeTimes.empty() && m_routeTimes.front() <= nextPs)
    {
        // before the endpoints and planes look at anything at that time
        for (auto& plane : m_planes)
        {
            plane->UseRoutes(m_routeTimes.front());
        }
        m_routeTimes.pop_front();
    }
}

bool
UbFabric::Watch(int64_t nowPs)
{
    const uint64_t hops = GetPacketHops();
    if (hops != m_watchedHops || PacketsInside() == 0)
    {
        m_watchedHops = hops;
        m_movedPs = nowPs;
        return false;
    }
    if (nowPs - m_movedPs <= m_watchdog.GetTimeStep())
    {
        return false;
    }
    m_isStalled = true;
    m_hasPaused = true;
    Simulator::Stop();
    return true;
}

int64_t
UbFabric::NextTime()
{
    if (!m_endpoints)
    {
        return UB_NEVER;
    }
    int64_t next = m_endpoints->NextTime();
    if (!m_sends.empty())
    {
        next = std::min(next, m_sends.front().timePs);
    }
    if (next == UB_NEVER && PacketsInside() == 0)
    {
        return UB_NEVER; // links may still change, and nobody is there to see it
    }
    next = std::min(next, PlanesNextPs());
    return m_routeTimes.empty() ? next : std::min(next, m_routeTimes.front());
}

int64_t
UbFabric::PlanesNextPs() const
{
    if (m_partition)
    {
        return m_partition->Agreed().nextPs;
    }
    int64_t next = UB_NEVER;
    for (const auto& plane : m_planes)
    {
        next = std::min(next, plane->NextTime());
    }
    return next;
}

uint64_t
UbFabric::PacketsInside() const
{
    if (m_partition)
    {
        return m_partition->Agreed().inside;
    }
    uint64_t inside = 0;
    for (const auto& plane : m_planes)
    {
        inside += plane->PacketsInside();
    }
    return inside;
}

UbPlanesStatus
UbFabric::OwnStatus() const
{
    UbPlanesStatus status;
    for (uint32_t plane = 0; plane < m_planes.size(); ++plane)
    {
        if (m_partition->Owns(plane))
        {
            UbPlane& own = *m_planes[plane];
            status.Add({own.NextTime(),
                        own.LastPs(),
                        own.PacketHops(),
                        own.PacketsLost(),
                        own.PacketsInside(),
                        own.EventCount(),
                        own.Broken().size(),
                        0,
                        0});
        }
    }
    status.isObserved = m_isObserved ? 1 : 0;
    status.step = UbMix(m_endpoints->EventCount() ^ UbMix(m_endpoints->PacketsSent()) ^
                        UbMix(~static_cast<uint64_t>(m_endpoints->LastPs())));
    return status;
}

int64_t
UbFabric::WidthPs() const
{
    const bool isObserved = m_partition ? m_partition->Agreed().isObserved != 0 : m_isObserved;
    return isObserved || m_sendsByBacklog ? 1 : m_endpoints->LookaheadPs();
}

int64_t
UbFabric::RunWindow(int64_t limitPs)
{
    UpdateObservers();
    if (!m_hasBegun)
    {
        Begin();
    }
    if (m_partition && !m_partition->HasAgreed())
    {
        m_partition->Agree(OwnStatus()); // somebody else may listen
    }
    if (IsSpread())
    {
        GatherSends();
    }
    const int64_t firstPs = NextTime();
    if (firstPs >= limitPs)
    {
        return limitPs - 1; // there were ordinary events only
    }
    if (m_watchdog.IsStrictlyPositive() && Watch(firstPs))
    {
        return m_movedPs + m_watchdog.GetTimeStep();
    }
    CatchUp(firstPs);
    const int64_t widthPs = WidthPs();
    int64_t endPs = firstPs > UB_NEVER - widthPs ? limitPs : std::min(limitPs, firstPs + widthPs);
    endPs = std::min(endPs, m_nextSamplePs);
    if (!m_routeTimes.empty())
    {
        endPs = std::min(endPs, m_routeTimes.front());
    }
    // endpoints first: what they send within the window reaches the planes in time
    const uint64_t hops = GetPacketHops();
    const int64_t reachedPs = RunEndpoints(endPs);
    RunPlanes(reachedPs);
    TakeDeliveries();
    m_isBusy = GetPacketHops() - hops >= m_threadHops;
    if (m_isBusy && reachedPs == endPs && CanRunAhead())
    {
        int64_t barrierPs = std::min(limitPs, m_nextSamplePs);
        barrierPs = m_routeTimes.empty() ? barrierPs : std::min(barrierPs, m_routeTimes.front());
        RunAhead(reachedPs, barrierPs);
    }
    int64_t lastPs = std::max(firstPs, m_endpoints->LastPs());
    bool isBroken = false;
    if (m_partition)
    {
        lastPs = std::max(lastPs, m_partition->Agreed().lastPs);
        isBroken = m_partition->Agreed().broken != 0;
    }
    else
    {
        for (auto& plane : m_planes)
        {
            lastPs = std::max(lastPs, plane->LastPs());
            isBroken = isBroken || !plane->Broken().empty();
        }
    }
    if (isBroken && m_reportsBroken)
    {
        m_hasPaused = true;
        Simulator::Stop();
    }
    if (m_endpoints->HasFailed())
    {
        Simulator::Stop();
    }
    if (m_tasks->NeedsChunk() || (m_stopAtHops != 0 && GetPacketHops() >= m_stopAtHops))
    {
        m_hasPaused = true;
        Simulator::Stop();
    }
    return lastPs;
}

void
UbFabric::RunPlanes(int64_t untilPs)
{
    if (m_workers && m_isBusy && !m_isObserved)
    {
        m_workers->Run([this, untilPs](uint32_t task) {
            if (task > 0 && task <= m_parts.size())
            {
                RunPlane(task - 1, untilPs);
            }
            return UB_OVER;
        });
        return;
    }
    for (uint32_t plane = 0; plane < m_parts.size(); ++plane)
    {
        RunPlane(plane, untilPs);
    }
}

void
UbFabric::RunPlane(uint32_t plane, int64_t untilPs)
{
    if (m_partition && !m_partition->Owns(plane))
    {
        m_endpoints->Outgoing(plane).clear(); // its own process has them too
        return;
    }
    uint32_t process = m_firstProcess[plane];
    for (UbPlane* part : m_parts[plane]->Parts())
    {
        part->Accept(m_endpoints->Outgoing(process++));
    }
    m_parts[plane]->RunBefore(untilPs);
}

bool
UbFabric::CanRunAhead() const
{
    // what a broken link does to routes, and what ordinary ns-3 models make of packets, depends
    // on how far the fabric has come when they hear of it; and other processes wait for a window
    return m_workers && !m_partition && !m_isObserved && !m_sendsByBacklog &&
           m_devicePacketsInside == 0 && m_endpoints->LookaheadPs() >= UbWindows::WINDOWS &&
           !m_tasks->NeedsChunk() &&
           std::none_of(m_planes.begin(), m_planes.end(), [](const auto& plane) {
               return plane->MayBreak();
           });
}

void
UbFabric::RunAhead(int64_t fromPs, int64_t barrierPs)
{
    const uint64_t hops = GetPacketHops();
    m_windows->Run(fromPs, barrierPs, m_threadHops, [this, hops](uint64_t moved) {
        return !m_tasks->NeedsChunk() && (m_stopAtHops == 0 || hops + moved < m_stopAtHops);
    });
}

void
UbFabric::TakeDeliveries()
{
    if (!m_partition)
    {
        for (const auto& plane : m_planes)
        {
            TakeArrived(plane->Outbox());
        }
        return;
    }
    for (uint32_t plane = 0; plane < m_planes.size(); ++plane)
    {
        std::swap(m_arrived[plane], m_planes[plane]->Outbox());
    }
    m_partition->Exchange(OwnStatus(), m_arrived);
    for (UbArrived& arrived : m_arrived)
    {
        TakeArrived(arrived);
    }
}

void
UbFabric::TakeArrived(UbArrived& arrived)
{
    auto& outbox = arrived.packets;
    for (size_t i = 0; i < outbox.size(); ++i)
    {
        const UbDelivery& delivery = outbox[i];
        if ((delivery.flow & UB_DEVICE_FLOW) == 0)
        {
            if (const size_t soon = i + DELIVERIES_AHEAD; soon < outbox.size())
            {
                m_endpoints->PrefetchFlow(outbox[soon].flow);
                m_endpoints->PrefetchReceiver(outbox[soon - DELIVERIES_AHEAD / 2].flow);
            }
            m_endpoints->Account(delivery);
            if (m_keepsAccount && !delivery.isLost && delivery.payloadBytes > 0)
            {
                const UbPacketAccount& account = arrived.accounts[i];
                m_endpoints->AddAccount(delivery.flow,
                                        account.waitedPs,
                                        account.serialisePs,
                                        account.propagatePs,
                                        account.switchPs);
            }
            continue;
        }
        const uint32_t handle = delivery.flow & ~UB_DEVICE_FLOW;
        --m_devicePacketsInside;
        // freed at once, so that handles are the same in all processes
        const DevicePacket packet = std::exchange(m_devicePackets[handle], {});
        m_freeHandles.push_back(handle);
        const Ptr<Node> node = packet.to->GetNode();
        if (delivery.isLost || (IsSpread() && node->GetSystemId() != m_partition->Rank()))
        {
            continue; // lost, and no matter: who wants it to arrive sends it again; or not here
        }
        const int64_t seenPs =
            delivery.tailPs + m_endpoints->ReceiveLatencyPs(packet.to->GetEndpoint());
        Simulator::ScheduleWithContext(node->GetId(),
                                       TimeStep(seenPs) - Simulator::Now(),
                                       &UbFabric::ReceiveAtDevice,
                                       this,
                                       packet);
    }
    outbox.clear();
    arrived.accounts.clear();
}

void
UbFabric::Arm()
{
    if (m_impl)
    {
        return; // it asks by itself
    }
    int64_t next = NextTime();
    const int64_t now = Simulator::Now().GetTimeStep();
    if (next == UB_NEVER)
    {
        return;
    }
    if (m_partition && m_partition->HasAgreed())
    {
        // To talk to the others at each instant would take too long. So the fabric lags: when a
        // window is over it is run as a whole, and nothing in it can be seen before.
        next += WidthPs() - 1;
    }
    if (m_step.IsPending())
    {
        if (static_cast<int64_t>(m_step.GetTs()) <= next)
        {
            return;
        }
        m_step.Cancel();
    }
    m_step = Simulator::Schedule(TimeStep(std::max<int64_t>(0, next - now)), &UbFabric::Step, this);
}

void
UbFabric::Step()
{
    const int64_t now = Simulator::Now().GetTimeStep();
    RunWindow(now + 1);
    Arm();
}

void
UbFabric::Settle()
{
    if (m_impl || !m_partition)
    {
        return;
    }
    const int64_t now = Simulator::Now().GetTimeStep();
    while (NextTime() < now && !m_tasks->NeedsChunk() && !m_endpoints->HasFailed() && !m_isStalled)
    {
        RunWindow(now);
    }
}

void
UbFabric::ExpectDevices()
{
    m_hasDevices = true;
}

void
UbFabric::SendFromDevice(Ptr<UbNetDevice> device,
                         Ptr<UbNetDevice> destination,
                         Ptr<Packet> packet,
                         uint16_t protocol)
{
    NS_LOG_FUNCTION(this << device << destination << packet << protocol);
    NS_ABORT_MSG_IF(device->GetLane() >= m_nLanes,
                    "a device uses virtual lane " << uint32_t{device->GetLane()}
                                                  << ", the fabric has " << m_nLanes);
    const DeviceSend send{Simulator::Now().GetTimeStep(),
                          {device, destination, packet, protocol},
                          packet->GetSize()};
    if (IsSpread())
    {
        m_sentHere.push_back(send);
        return;
    }
    Settle();
    PutIntoEndpoint(send);
    for (uint32_t plane = 0; plane < m_planes.size(); ++plane)
    {
        auto& outgoing = m_endpoints->Outgoing(plane);
        if (m_partition)
        {
            m_partition->Expect(outgoing);
            if (!m_partition->Owns(plane))
            {
                outgoing.clear();
            }
        }
        m_planes[plane]->Accept(outgoing);
    }
    Arm();
}

void
UbFabric::PutIntoEndpoint(const DeviceSend& send)
{
    uint32_t handle;
    if (m_freeHandles.empty())
    {
        handle = static_cast<uint32_t>(m_devicePackets.size());
        m_devicePackets.emplace_back();
    }
    else
    {
        handle = m_freeHandles.back();
        m_freeHandles.pop_back();
    }
    m_devicePackets[handle] = send.packet;
    ++m_devicePacketsInside;
    m_endpoints->SendDevicePacket(send.packet.from->GetEndpoint(),
                                  send.packet.to->GetEndpoint(),
                                  handle,
                                  send.bytes,
                                  send.packet.from->GetNetwork(),
                                  send.packet.from->GetLane(),
                                  send.timePs);
}

bool
UbFabric::IsSpread() const
{
    return m_partition && m_partition->SpreadsNodes();
}

int64_t
UbFabric::Meet(int64_t ordinaryPs, bool stops)
{
    if (!m_sentHere.empty())
    {
        ordinaryPs = std::min(ordinaryPs, m_sentHere.front().timePs); // sent before the run
    }
    std::vector<int64_t> times{stops ? -1 : ordinaryPs};
    m_partition->Join(times);
    const int64_t earliest = *std::min_element(times.begin(), times.end());
    const int64_t firstPs = std::min(earliest, NextTime());
    const int64_t widthPs = WidthPs();
    return earliest < 0 || firstPs > UB_NEVER - widthPs ? UB_NEVER : firstPs + widthPs;
}

void
UbFabric::GatherSends()
{
    /// How a packet travels, followed by its contents.
    struct Header
    {
        int64_t timePs;      //!< when it was sent
        uint32_t from[2];    //!< node and interface of the sender
        uint32_t to[2];      //!< node and interface of the receiver
        uint32_t bytes;      //!< its bytes
        uint32_t serialised; //!< bytes of its contents, as ns-3 writes them
        uint32_t protocol;   //!< its protocol
    };

    std::string mine;
    for (const DeviceSend& send : m_sentHere)
    {
        const DevicePacket& packet = send.packet;
        const Header header{send.timePs,
                            {packet.from->GetNode()->GetId(), packet.from->GetIfIndex()},
                            {packet.to->GetNode()->GetId(), packet.to->GetIfIndex()},
                            send.bytes,
                            packet.packet->GetSerializedSize(),
                            packet.protocol};
        mine.append(reinterpret_cast<const char*>(&header), sizeof(header));
        const size_t at = mine.size();
        mine.resize(at + header.serialised);
        packet.packet->Serialize(reinterpret_cast<uint8_t*>(&mine[at]), header.serialised);
    }
    const auto& all = m_partition->Gather(mine);
    const auto device = [](const uint32_t (&place)[2]) {
        return DynamicCast<UbNetDevice>(NodeList::GetNode(place[0])->GetDevice(place[1]));
    };
    for (uint32_t rank = 0; rank < all.size(); ++rank)
    {
        if (rank == m_partition->Rank())
        {
            m_sends.insert(m_sends.end(), m_sentHere.begin(), m_sentHere.end());
            continue;
        }
        for (size_t at = 0; at < all[rank].size();)
        {
            Header header;
            std::memcpy(&header, &all[rank][at], sizeof(header));
            at += sizeof(header);
            DeviceSend send{header.timePs,
                            {device(header.from),
                             device(header.to),
                             nullptr,
                             static_cast<uint16_t>(header.protocol)},
                            header.bytes};
            if (send.packet.to->GetNode()->GetSystemId() == m_partition->Rank())
            {
                send.packet.packet =
                    Create<Packet>(reinterpret_cast<const uint8_t*>(&all[rank][at]),
                                   header.serialised,
                                   true);
            }
            at += header.serialised;
            m_sends.push_back(send);
        }
    }
    m_sentHere.clear();
    std::stable_sort(m_sends.begin(), m_sends.end(), [](const auto& a, const auto& b) {
        return a.timePs < b.timePs;
    });
}

int64_t
UbFabric::RunEndpoints(int64_t endPs)
{
    while (!m_sends.empty() && m_sends.front().timePs < endPs)
    {
        const int64_t timePs = m_sends.front().timePs;
        const int64_t reachedPs = m_endpoints->RunBefore(timePs);
        if (reachedPs < timePs)
        {
            return reachedPs; // tasks are needed first
        }
        PutIntoEndpoint(m_sends.front());
        m_sends.pop_front();
    }
    return m_endpoints->RunBefore(endPs);
}

void
UbFabric::ReceiveAtDevice(const DevicePacket& arrived)
{
    arrived.to->Receive(arrived.packet, arrived.protocol, arrived.from, arrived.to);
}

std::string
UbFabric::GetError() const
{
    if (!m_endpoints->HasFailed())
    {
        return "";
    }
    const UbEndpointError& error = m_endpoints->Error();
    std::ostringstream text;
    text << "network " << error.network << ": "
         << (error.hasWay ? "no answer to node " : "no way from node ") << error.src
         << (error.hasWay ? " from node " : " to node ") << error.dst << " at " << error.timePs
         << " ps";
    return text.str();
}

const UbEndpointError&
UbFabric::GetFailure() const
{
    return m_endpoints->Error();
}

std::string
UbFabric::Leftover() const
{
    std::ostringstream text;
    if (m_endpoints->BytesSent() != m_endpoints->BytesDelivered())
    {
        text << m_endpoints->BytesSent() << " bytes were sent and " << m_endpoints->BytesDelivered()
             << " delivered; ";
    }
    for (const auto& plane : m_planes)
    {
        std::string left = plane->Leftover();
        if (m_partition)
        {
            left = m_partition->Join(left);
        }
        if (!left.empty())
        {
            text << "plane " << plane->Number() << ": " << left << "; ";
        }
    }
    if (m_tasks->Unfinished() != 0)
    {
        text << m_tasks->Unfinished() << " flows and tasks are not finished";
        const uint64_t first = m_tasks->FirstUnfinishedTask();
        if (first != static_cast<uint64_t>(UB_NEVER))
        {
            text << ", the first task is " << first;
        }
    }
    return text.str();
}

void
UbFabric::ReadLinkStats(std::vector<UbLinkStats>& stats) const
{
    stats.assign(m_nLinks, UbLinkStats());
    for (const auto& plane : m_planes)
    {
        plane->ReadStats(stats.data());
    }
    if (m_partition)
    {
        static_assert(sizeof(UbLinkStats) % sizeof(uint64_t) == 0, "numbers of 64 bits only");
        std::vector<uint64_t> values(stats.size() * sizeof(UbLinkStats) / sizeof(uint64_t));
        std::memcpy(values.data(), stats.data(), values.size() * sizeof(uint64_t));
        m_partition->Sum(values); // each link has one plane, and other planes' links are at 0
        std::memcpy(static_cast<void*>(stats.data()),
                    values.data(),
                    values.size() * sizeof(uint64_t));
    }
}

uint32_t
UbFabric::GetPayloadBytes() const
{
    return m_payloadBytes;
}

uint32_t
UbFabric::GetNNodes() const
{
    return m_nNodes;
}

uint32_t
UbFabric::GetNLinks() const
{
    return m_nLinks;
}

uint32_t
UbFabric::GetNProcesses() const
{
    return static_cast<uint32_t>(m_planes.size());
}

uint64_t
UbFabric::GetPacketHops() const
{
    if (m_partition)
    {
        return m_partition->Agreed().packetHops;
    }
    uint64_t hops = 0;
    for (const auto& plane : m_planes)
    {
        hops += plane->PacketHops();
    }
    return hops;
}

uint64_t
UbFabric::GetPacketsLost() const
{
    if (m_partition)
    {
        return m_partition->Agreed().packetsLost;
    }
    uint64_t lost = 0;
    for (const auto& plane : m_planes)
    {
        lost += plane->PacketsLost();
    }
    return lost;
}

uint64_t
UbFabric::GetPacketsSent() const
{
    return m_endpoints->PacketsSent();
}

uint64_t
UbFabric::GetBytesSent() const
{
    return m_endpoints->BytesSent();
}

uint64_t
UbFabric::GetBytesDelivered() const
{
    return m_endpoints->BytesDelivered();
}

uint64_t
UbFabric::GetFabricEvents() const
{
    uint64_t events = m_endpoints->EventCount();
    if (m_partition)
    {
        return events + m_partition->Agreed().events;
    }
    for (const auto& plane : m_planes)
    {
        events += plane->EventCount();
    }
    return events;
}

} // namespace ns3

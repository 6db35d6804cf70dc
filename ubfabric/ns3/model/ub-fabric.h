// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_FABRIC_H
#define UB_FABRIC_H

#include "ub-endpoint-process.h"
#include "ub-fabric-arrays.h"
#include "ub-partition.h"
#include "ub-path-policy.h"
#include "ub-plane-policy.h"
#include "ub-plane.h"
#include "ub-simulator-impl.h"
#include "ub-task-graph.h"

#include "ns3/event-id.h"
#include "ns3/object.h"
#include "ns3/traced-callback.h"

#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace ns3
{

class UbNetDevice;
class UbPlaneParts;
class UbWindows;
class UbWorkers;
class Packet;

/**
 * @ingroup ub-fabric
 * @brief A lossless fabric of planes, switches and endpoints, moved packet by packet.
 *
 * Build() takes the fabric as flat arrays; then chunks of flows and tasks are added and ns-3's
 * Simulator::Run moves the packets. UbNetDevice objects put ordinary ns-3 packets on the same
 * queues.
 *
 * Inside, each plane and the set of all endpoints are logical processes with queues of their
 * own. They run in windows no longer than the smallest receive latency of an endpoint: within
 * that time nothing that arrives on a plane can cause anything elsewhere. While a trace source
 * has listeners the windows shrink to one instant, so that callbacks come in order of time.
 *
 * With the attribute Exchange the planes are spread over several processes. All of them then make
 * the same calls in the same order; what ReadLinkStats, ReadStalled, TakeBrokenLinks and Leftover
 * say is put together from all of them, so each waits for the others there, as in Simulator::Run.
 */
class UbFabric : public Object, public UbWindowedProcess
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    UbFabric();
    ~UbFabric() override;

    /**
     * Build the fabric; once.
     * @param [in] arrays What to build. The arrays are not needed afterwards.
     */
    void Build(const UbFabricArrays& arrays);

    /**
     * Load flows and tasks at the current time.
     * @param [in] arrays What to load. The arrays must stay until the chunk is complete.
     * @return Number of the chunk from 0, or -1 if too many are at work.
     */
    int64_t AddChunk(const UbChunkArrays& arrays);

    /**
     * @return Number of a chunk whose flows and tasks are all finished, each once; -1 if none.
     */
    int64_t TakeCompleteChunk();

    /**
     * @return Whether the run stopped because a stream needs tasks of the next chunk.
     */
    bool NeedsChunk() const;

    /**
     * Let Simulator::Run return after about so many packet-hops, for progress and interruption;
     * running on gives the same result.
     * @param [in] packetHops Packet-hops from now, 0 for no limit.
     */
    void StopAfter(uint64_t packetHops);

    /**
     * @return Whether the fabric stopped the last Simulator::Run, to be run on; if not, the
     * simulation has no event left, or somebody else stopped it.
     */
    bool HasPaused() const;

    /**
     * @return Empty if every packet arrived, every credit is back and every task finished;
     * else what is left.
     */
    std::string Leftover() const;

    /**
     * @return Empty, or which packet could not be brought to its destination; the run has
     * stopped then and cannot go on.
     */
    std::string GetError() const;

    /// @return What GetError says, in numbers: source, destination, network, time.
    const UbEndpointError& GetFailure() const;

    /**
     * @param [out] stats One entry a link.
     */
    void ReadLinkStats(std::vector<UbLinkStats>& stats) const;

    /**
     * Let a link change at a time to come; before the first packet, in order of time.
     * @param [in] timePs The time.
     * @param [in] link The link.
     * @param [in] bytesPerS Its rate from then on, 0 for down.
     * @param [in] bitErrorRate Its bit error rate from then on.
     */
    void ScheduleLink(int64_t timePs, uint32_t link, uint64_t bytesPerS, double bitErrorRate);

    /**
     * Let a switch die or come back at a time to come; before the first packet, in order of
     * time. Its links are scheduled apart; a dead switch loses what it holds.
     * @param [in] timePs The time.
     * @param [in] node The switch.
     * @param [in] isDead Whether it dies.
     */
    void ScheduleSwitch(int64_t timePs, uint32_t node, bool isDead);

    /**
     * Let routes change at a time to come, in order of time.
     * @param [in] timePs The time, not before the present.
     * @param [in] arrays The fabric as it is then, with the same nodes, links and planes; read
     * at once.
     */
    void ScheduleRoutes(int64_t timePs, const UbFabricArrays& arrays);

    /**
     * Stop the run when links give up for bit errors, so that somebody can schedule routes
     * around them; without that, packets wait for them for ever.
     */
    void ReportBrokenLinks();

    /**
     * @return Links that gave up, and when, each once.
     */
    std::vector<std::pair<uint32_t, int64_t>> TakeBrokenLinks();

    /**
     * @param [out] links Links that hold packets and cannot send them.
     */
    void ReadStalled(std::vector<uint32_t>& links) const;

    /**
     * @return Whether the watchdog stopped the run: packets were inside and none moved for the
     * time of the attribute Watchdog.
     */
    bool IsStalled() const;

    /// A look at all links at one time.
    struct Sample
    {
        int64_t timePs;                     //!< the time
        std::vector<uint64_t> bytes;        //!< by link: bytes sent so far
        std::vector<uint64_t> waitingBytes; //!< by link: bytes that wait for it
    };

    /**
     * @return The samples since the caller last emptied this; see the attribute SampleInterval.
     */
    std::vector<Sample>& Samples();

    /// Be told that devices will send packets; before the first window.
    void ExpectDevices();

    /**
     * Send a packet for a device.
     * @param [in] device The sender.
     * @param [in] destination The receiver.
     * @param [in] packet The packet.
     * @param [in] protocol Its protocol number.
     */
    void SendFromDevice(Ptr<UbNetDevice> device,
                        Ptr<UbNetDevice> destination,
                        Ptr<Packet> packet,
                        uint16_t protocol);

    /// @return Most bytes of a message in one packet.
    uint32_t GetPayloadBytes() const;
    /// @return Number of nodes.
    uint32_t GetNNodes() const;
    /// @return Number of links.
    uint32_t GetNLinks() const;
    /**
     * @return Processes that run the planes: one each, or more where there are fewer planes than
     * threads; known from the first window on.
     */
    uint32_t GetNProcesses() const;
    /// @return Packets times links crossed so far.
    uint64_t GetPacketHops() const;
    /// @return Packets lost so far with dead switches or for want of a route.
    uint64_t GetPacketsLost() const;
    /// @return Packets sent so far.
    uint64_t GetPacketsSent() const;
    /// @return Payload bytes of flows handed to the fabric so far.
    uint64_t GetBytesSent() const;
    /// @return Payload bytes of flows that arrived so far.
    uint64_t GetBytesDelivered() const;
    /// @return Events of the planes and endpoints processed so far.
    uint64_t GetFabricEvents() const;
    /**
     * @param [in] src An endpoint.
     * @param [in] dst Another.
     * @param [in] network A network.
     * @return Whether a packet can get from one to the other.
     */
    bool Reaches(uint32_t src, uint32_t dst, uint32_t network) const;

    // inherited from UbWindowedProcess
    int64_t NextTime() override;
    int64_t RunWindow(int64_t limitPs) override;
    bool IsSpread() const override;
    int64_t Meet(int64_t ordinaryPs, bool stops) override;

    /**
     * TracedCallback signature of packets on links.
     * @param [in] link The link.
     * @param [in] flow The flow within the engine; its top bit marks a device's packet.
     * @param [in] bytes Bytes of the packet.
     */
    typedef void (*PacketTracedCallback)(uint32_t link, uint32_t flow, uint32_t bytes);
    /**
     * TracedCallback signature of links.
     * @param [in] link The link.
     */
    typedef void (*LinkTracedCallback)(uint32_t link);
    /**
     * TracedCallback signature of packets that are sent again.
     * @param [in] link The link.
     * @param [in] flow The flow within the engine; its top bit marks a device's packet.
     */
    typedef void (*RetryTracedCallback)(uint32_t link, uint32_t flow);
    /**
     * TracedCallback signature of links that change.
     * @param [in] link The link.
     * @param [in] bytesPerS Its rate from now on, 0 when it is down.
     */
    typedef void (*ChangeTracedCallback)(uint32_t link, uint64_t bytesPerS);
    /**
     * TracedCallback signature of flows.
     * @param [in] src Source endpoint.
     * @param [in] dst Destination endpoint.
     * @param [in] bytes Bytes of all messages.
     * @param [in] fct Time from hand-over to last byte seen.
     */
    typedef void (*FlowTracedCallback)(uint32_t src, uint32_t dst, uint64_t bytes, Time fct);

  protected:
    void DoDispose() override;

  private:
    /// Passes what planes report on to the trace sources.
    class Observer;
    friend class Observer;

    /// A packet of a device on its way.
    struct DevicePacket
    {
        Ptr<UbNetDevice> from; //!< sender
        Ptr<UbNetDevice> to;   //!< receiver
        Ptr<Packet> packet;    //!< the packet
        uint16_t protocol{0};  //!< its protocol
    };

    /// A packet that a device has sent and no endpoint has seen yet; where nodes are spread.
    struct DeviceSend
    {
        int64_t timePs{0};   //!< when
        DevicePacket packet; //!< the packet; its contents are where its receiver is
        uint32_t bytes{0};   //!< its bytes
    };

    /// A plane as processes that share its work.
    struct SplitPlane
    {
        std::vector<std::unique_ptr<UbPlane>> parts; //!< its parts; none if it cannot be split
        int64_t lookaheadPs{0};                      //!< the shortest cable between them
    };

    /**
     * Split planes, where there are fewer of them than threads. They stay apart from those that
     * are whole until it is known what the run is like.
     * @param [in] arrays The fabric.
     * @param [in] path Makes planes.
     */
    void MakeParts(const UbFabricArrays& arrays, const UbPathPolicy& path);

    /**
     * @return Whether planes may be run in parts: nothing must change them in the course of the
     * run, and nobody must see what happens at one time in an order of its own.
     */
    bool CanSplit() const;

    /// Decide on planes and threads, when it is known what the run is like.
    void Begin();

    /// Abort if planes run in parts, which nothing may change.
    void NeedWholePlanes() const;

    /// See to it that the simulator runs the fabric's next event.
    void Arm();

    /// Run what is due; the way under a SimulatorImpl that knows no windows.
    void Step();

    /**
     * Run what lies before the simulator's time: whatever is put into the fabric now comes
     * after it. Only a partitioned fabric under a SimulatorImpl that knows no windows lags.
     */
    void Settle();

    /**
     * @return How long endpoints and planes may run without looking at each other.
     */
    int64_t WidthPs() const;

    /**
     * @return What the planes of this process have come to.
     */
    UbPlanesStatus OwnStatus() const;

    /**
     * @return Time of the next event of all planes, UB_NEVER if none.
     */
    int64_t PlanesNextPs() const;

    /**
     * @return Packets inside all planes.
     */
    uint64_t PacketsInside() const;

    /// Take notice of listeners that came or went.
    void UpdateObservers();

    /**
     * Let the planes catch up with the endpoints.
     * @param [in] untilPs The time up to which.
     */
    void RunPlanes(int64_t untilPs);

    /**
     * Let a plane catch up with the endpoints.
     * @param [in] plane The plane.
     * @param [in] untilPs The time up to which.
     */
    void RunPlane(uint32_t plane, int64_t untilPs);

    /**
     * @return Whether several windows may pass before anybody else is asked.
     */
    bool CanRunAhead() const;

    /**
     * Run window after window, endpoints and planes at the same time on several threads, while
     * there is much to do.
     * @param [in] fromPs How far endpoints and planes have come.
     * @param [in] barrierPs How far they may go.
     */
    void RunAhead(int64_t fromPs, int64_t barrierPs);

    /**
     * Hand what arrived in a plane to the endpoints and devices.
     * @param [in,out] arrived What arrived; nothing is left.
     */
    void TakeArrived(UbArrived& arrived);

    /// Hand what arrived in the planes to the endpoints and devices.
    void TakeDeliveries();

    /**
     * Deliver a packet to its device.
     * @param [in] arrived The packet.
     */
    void ReceiveAtDevice(const DevicePacket& arrived);

    /**
     * Put a packet of a device into its endpoint.
     * @param [in] send The packet.
     */
    void PutIntoEndpoint(const DeviceSend& send);

    /// Tell all processes what devices here have sent, and learn of the others; collective.
    void GatherSends();

    /**
     * Let the endpoints process all events before a time, and packets of devices in between.
     * @param [in] endPs The time.
     * @return See UbEndpointProcess::RunBefore.
     */
    int64_t RunEndpoints(int64_t endPs);

    /**
     * @param [in] network The plane's network; others than UB know no cells and no crossbars.
     * @return How links and switches of a plane work.
     */
    UbPlaneSettings PlaneSettings(uint32_t network) const;

    /**
     * Do what falls due before the next events: samples, and changes of routes.
     * @param [in] nextPs Time of the next event.
     */
    void CatchUp(int64_t nextPs);

    /**
     * See whether packets move; stop the run if they do not.
     * @param [in] nowPs The time.
     * @return Whether the run was stopped.
     */
    bool Watch(int64_t nowPs);

    uint32_t m_payloadBytes{0};        //!< attribute
    uint32_t m_nThreads{1};            //!< attribute
    uint64_t m_threadHops{1};          //!< attribute
    uint32_t m_nLanes{0};              //!< attribute
    uint64_t m_seed{0};                //!< attribute
    uint32_t m_cellBytes{1};           //!< attribute
    UbCreditReturn m_creditReturn{};   //!< attribute
    uint32_t m_creditGrain{1};         //!< attribute
    Time m_creditTimeout;              //!< attribute
    uint32_t m_controlBytes{20};       //!< attribute
    bool m_sharesBuffer{false};        //!< attribute
    uint32_t m_laneFloorCells{0};      //!< attribute
    UbLaneArbitration m_arbitration{}; //!< attribute
    std::string m_laneWeights;         //!< attribute
    uint32_t m_quantumBytes{0};        //!< attribute
    UbAllocator m_allocator{};         //!< attribute
    bool m_hasInputFifo{false};        //!< attribute
    uint32_t m_iterations{1};          //!< attribute
    double m_speedup{1};               //!< attribute
    uint64_t m_retryBufferBytes{0};    //!< attribute
    uint32_t m_retryLimit{0};          //!< attribute
    uint32_t m_retrainLimit{0};        //!< attribute
    Time m_retrainTime;                //!< attribute
    uint64_t m_markBytes{0};           //!< attribute
    uint64_t m_markAllBytes{0};        //!< attribute
    double m_markShare{1};             //!< attribute
    bool m_keepsAccount{false};        //!< attribute
    Time m_sampleInterval;             //!< attribute
    Time m_watchdog;                   //!< attribute
    std::string m_pathPolicy;          //!< attribute
    std::string m_planePolicy;         //!< attribute
    uint32_t m_flitBytes{0};           //!< attribute
    uint32_t m_blockFlits{0};          //!< attribute
    uint32_t m_blockHeaderBytes{0};    //!< attribute
    uint32_t m_blockCheckBytes{0};     //!< attribute
    std::string m_ubTransport;         //!< attribute
    std::string m_rdmaTransport;       //!< attribute
    std::string m_vpcTransport;        //!< attribute
    std::string m_ubCongestion;        //!< attribute
    std::string m_rdmaCongestion;      //!< attribute
    std::string m_vpcCongestion;       //!< attribute
    Ptr<UbPlaneExchange> m_exchange;   //!< attribute

    uint32_t m_nNodes{0};                               //!< number of nodes
    uint32_t m_nLinks{0};                               //!< number of links
    std::vector<std::unique_ptr<UbPlane>> m_planes;     //!< the planes, or all parts of them
    std::vector<std::unique_ptr<UbPlaneParts>> m_parts; //!< by plane, from the first window on
    std::vector<uint32_t> m_firstProcess;               //!< by plane: its first part in m_planes
    std::vector<SplitPlane> m_splits;                   //!< by plane, until the first window
    bool m_hasBegun{false};                             //!< the first window has been run
    bool m_hasDevices{false};                           //!< devices may send packets
    std::unique_ptr<UbEndpointProcess> m_endpoints;     //!< the endpoints
    std::unique_ptr<UbTaskGraph> m_tasks;               //!< the tasks
    std::unique_ptr<UbWorkers> m_workers;               //!< threads, if there are several
    std::unique_ptr<UbWindows> m_windows;               //!< what they run
    std::unique_ptr<UbPartition> m_partition; //!< who runs which plane, if not all this one
    std::vector<UbArrived> m_arrived;     //!< what arrived in planes, as processes tell each other
    bool m_isBusy{false};                 //!< much was done in the last window
    uint64_t m_devicePacketsInside{0};    //!< packets of devices under way
    std::unique_ptr<Observer> m_observer; //!< for trace sources
    bool m_isObserved{false};             //!< whether somebody listens
    std::vector<DevicePacket> m_devicePackets; //!< packets of devices by handle
    std::vector<uint32_t> m_freeHandles;       //!< unused handles
    std::vector<DeviceSend> m_sentHere;        //!< by devices here, not yet known to all
    std::deque<DeviceSend> m_sends;            //!< by all devices, known to all, by time
    Ptr<UbSimulatorImpl> m_impl;               //!< the simulator, if it knows windows
    EventId m_step;                            //!< pending step, if it does not
    uint64_t m_stopAtHops{0};                  //!< stop after this many packet-hops
    std::vector<uint32_t> m_linkPlane;         //!< plane of each link
    std::deque<int64_t> m_routeTimes;          //!< when routes change
    std::vector<Sample> m_samples;             //!< samples not yet taken away
    int64_t m_nextSamplePs{UB_NEVER};          //!< next sample
    bool m_reportsBroken{false};               //!< stop when links give up
    bool m_sendsByBacklog{false};              //!< sources look at the ports of their planes
    bool m_isStalled{false};                   //!< the watchdog barked
    uint64_t m_watchedHops{0};                 //!< packet-hops when packets last moved
    int64_t m_movedPs{0};                      //!< and when that was
    bool m_hasPaused{false};                   //!< stopped the last run

    TracedCallback<uint32_t, uint32_t, uint32_t> m_packetSent;         //!< trace source
    TracedCallback<uint32_t, uint32_t, uint32_t> m_packetDelivered;    //!< trace source
    TracedCallback<uint32_t, uint32_t> m_retried;                      //!< a packet is sent again
    TracedCallback<uint32_t, uint64_t> m_linkChanged;                  //!< a link changed
    TracedCallback<uint32_t> m_creditStall;                            //!< trace source
    TracedCallback<uint32_t, uint32_t, uint64_t, Time> m_flowFinished; //!< trace source
};

} // namespace ns3

#endif // UB_FABRIC_H

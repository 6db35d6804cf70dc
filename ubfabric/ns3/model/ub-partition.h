// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_PARTITION_H
#define UB_PARTITION_H

#include "ub-plane-exchange.h"
#include "ub-plane.h"

#include <string>
#include <utility>
#include <vector>

namespace ns3
{

/// What some planes have come to, as far as it steers the run.
struct UbPlanesStatus
{
    int64_t nextPs{UB_NEVER}; //!< earliest next event
    int64_t lastPs{0};        //!< latest event processed
    uint64_t packetHops{0};   //!< packets times links crossed
    uint64_t packetsLost{0};  //!< packets lost
    uint64_t inside{0};       //!< packets inside
    uint64_t events{0};       //!< events processed
    uint64_t broken{0};       //!< links that gave up and were not taken notice of
    uint64_t isObserved{0};   //!< whether somebody listens to what happens in them
    uint64_t step{0};         //!< what the endpoints have come to; the same on all ranks

    /**
     * Add what other planes have come to.
     * @param [in] other The others.
     */
    void Add(const UbPlanesStatus& other);
};

/**
 * @ingroup ub-fabric
 * @brief The planes of a fabric as spread over several processes.
 *
 * Endpoints and tasks are at work on every rank, the same everywhere. Each rank runs its own
 * planes; after each window it sends what arrived in them to the others and learns what arrived
 * in theirs, so that all endpoints see the same. What steers the run (next event, packets inside,
 * links that gave up, and so on) is what all ranks agreed on last.
 */
class UbPartition
{
  public:
    /**
     * @param [in] exchange How ranks talk.
     * @param [in] nPlanes Number of planes.
     */
    UbPartition(Ptr<UbPlaneExchange> exchange, uint32_t nPlanes);

    /**
     * @param [in] plane A plane.
     * @return Whether this rank runs it.
     */
    bool Owns(uint32_t plane) const
    {
        return m_owners[plane] == m_rank;
    }

    /// @return Number of this rank.
    uint32_t Rank() const
    {
        return m_rank;
    }

    /// @return Whether each rank runs the ordinary events of its own nodes only.
    bool SpreadsNodes() const
    {
        return m_spreadsNodes;
    }

    /// @return What all planes have come to, as agreed on last.
    const UbPlanesStatus& Agreed() const
    {
        return m_agreed;
    }

    /// @return Whether ranks have agreed at all.
    bool HasAgreed() const
    {
        return m_hasAgreed;
    }

    /**
     * Take into account that packets were put into planes since ranks agreed; the same on all.
     * @param [in] injections The packets.
     */
    void Expect(const UbInjections& injections);

    /**
     * Take into account that a plane has something to do at a time; the same on all ranks.
     * @param [in] timePs The time.
     */
    void Expect(int64_t timePs);

    /**
     * Tell what the planes of this rank have done, and learn of the others; collective.
     * @param [in] own What the planes of this rank have come to.
     * @param [in,out] arrived By plane: what arrived in it; those of other ranks are filled.
     */
    void Exchange(const UbPlanesStatus& own, std::vector<UbArrived>& arrived);

    /**
     * Agree on what planes have come to without anything having arrived; collective.
     * @param [in] own What the planes of this rank have come to.
     */
    void Agree(const UbPlanesStatus& own);

    /**
     * Add numbers up over all ranks; collective.
     * @param [in,out] values The numbers; afterwards the sums.
     */
    void Sum(std::vector<uint64_t>& values);

    /**
     * Put lists of all ranks one after another; collective.
     * @tparam T What the lists hold; copied byte by byte.
     * @param [in,out] list The list of this rank; afterwards of all, in order of rank.
     */
    template <class T>
    void Join(std::vector<T>& list)
    {
        std::vector<std::string> all;
        m_exchange->Gather(
            std::string(reinterpret_cast<const char*>(list.data()), list.size() * sizeof(T)),
            all);
        list.clear();
        for (const std::string& bytes : all)
        {
            const size_t old = list.size();
            list.resize(old + bytes.size() / sizeof(T));
            bytes.copy(reinterpret_cast<char*>(list.data() + old), bytes.size());
        }
    }

    /**
     * Send some bytes to all ranks; collective.
     * @param [in] mine The bytes.
     * @return By rank: its bytes, until the next call.
     */
    const std::vector<std::string>& Gather(const std::string& mine);

    /**
     * Put texts of all ranks one after another; collective.
     * @param [in] text The text of this rank.
     * @return The texts in order of rank.
     */
    std::string Join(const std::string& text);

  private:
    Ptr<UbPlaneExchange> m_exchange; //!< how ranks talk
    uint32_t m_rank;                 //!< number of this one
    bool m_spreadsNodes;             //!< each rank runs its own nodes only
    std::vector<uint32_t> m_owners;  //!< by plane: its rank
    UbPlanesStatus m_agreed;         //!< what all planes have come to
    bool m_hasAgreed{false};         //!< whether they have said so
    std::string m_mine;              //!< what this rank has to tell
    std::vector<std::string> m_all;  //!< what all ranks have to tell
};

} // namespace ns3

#endif // UB_PARTITION_H
